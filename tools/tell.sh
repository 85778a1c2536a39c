#!/bin/sh
# tell.sh LOG COMMAND...: run a command into a log, and say every four seconds what it said last.
# Where it fails, all that it said is printed.
log=$1
shift
"$@" > "$log" 2>&1 &
process=$!
trap 'kill $process 2> /dev/null; exit 130' INT TERM
seconds=0
echo "$(basename "$1") ..."
while kill -0 $process 2> /dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    if [ $((seconds % 4)) -eq 0 ]; then
        echo "$(basename "$1"): $seconds s, $(tail -n 1 "$log" | cut -c 1-90)"
    fi
done
wait $process || {
    code=$?
    cat "$log"
    exit $code
}

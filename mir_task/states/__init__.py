"""Hidden states that another engine wrote, measured without the model: `from_states`, `write_states`.

One safetensors file a document, beside a manifest that says of which model they are; `docs/states.md`
has the layout. May import measuring and what is below it, and reports; knows no harness.
"""

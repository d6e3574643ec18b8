"""The messages of contracts that are kept as Protocol Buffers. `python -m cassata.proto` generates them anew from the .proto files."""

"""The RPC surface: one thin function a method, a file a noun, no logic of its own."""

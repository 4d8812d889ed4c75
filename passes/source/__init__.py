"""What the source says, in few operators of float32."""

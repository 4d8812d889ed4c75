"""Which values change with time, and how time is unrolled."""

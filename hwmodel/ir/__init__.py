"""The vocabulary: operators, block masks and the trace. It knows no hardware and no torch."""

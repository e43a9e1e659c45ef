"""The same maths without tricks: what benchmarks compare with, and what tests hold the library against."""

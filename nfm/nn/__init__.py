"""Network parts that teacher and student share: patches, attention, embeddings, layers."""

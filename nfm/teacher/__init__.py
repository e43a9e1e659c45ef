"""The teacher: a normalizing flow (TarFlow), its likelihood, its samples and their denoising."""

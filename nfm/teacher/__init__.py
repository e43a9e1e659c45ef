"""The teacher: an autoregressive normalizing flow (TarFlow), its likelihood, samples and denoising."""

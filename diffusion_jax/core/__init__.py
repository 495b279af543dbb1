"""The mathematics of diffusion as pure functions of arrays: no flax, no config, no files.

Throughout: t in [0, 1], 0 is data and 1 is noise; x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, I);
arrays are [B, *spatial, C]; images lie in [-1, 1].
"""

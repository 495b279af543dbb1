"""Every key of a config with its default and, behind it, its meaning: `diffusion-jax keys` prints these comments.

The network family adds its own options to `model`. Keys marked spec are read by `spec.from_spec`.
"""

from typing import Any

SCHEMA: dict[str, Any] = {
    "task": "diffusion",  # diffusion | autoencoder | classifier: what is trained
    "seed": 0,  # of the parameters, the order of the data and every random draw of a step
    "init_from": "",  # workdir whose averaged parameters a new run starts with
    "data": {
        # digits | shapes:.. | tfds:NAME | folder:PATH | parquet:PATH | webdataset:PATH | array_record:PATH | audio:PATH
        # | notes:.. | arrays:FILE
        "source": "digits",
        "split": "train",  # train, or another that the source has
        "caption": "text",  # column of metadata.jsonl or .csv, or text of a TFDS data set, that is the caption
        "missing_captions": "tell",  # tell | refuse: images that are listed nowhere, or with an empty caption
        "data_dir": "",  # where TFDS keeps its data sets; "" is its own default
        "shape": (),  # shape of an example, channels last: (height, width, channels); (): that of the data
        # spec, modalities: how examples are read and written; "": as the source says. image(resize='buckets') trains on
        # sizes by aspect ratio
        "modality": "",
        "flip": False,  # mirror half of the images, at random
        "precomputed": "",  # folder of latents or text features that `diffusion-jax precompute` made; "": none
        "corrupt_limit": 0,  # unreadable examples that are skipped and named before the run ends
        "log_examples": False,  # write which examples each step was given, to examples/
        "cache": False,  # hold the decoded images in memory
        "shuffle_bytes": 2**30,  # of row groups of Parquet that are shuffled together, and held by each process
        "threads": 4,  # threads of each process that read and decode
        "workers": 0,  # processes that read and decode; 0 uses threads alone
    },
    "schedule": "linear",  # spec, core/schedules; modifiers follow, as in "linear | zero_snr"; or learned(...)
    "prediction": "eps",  # spec, core/predictions.py
    "times": "uniform",  # spec, core/times.py
    "objective": "simple",  # spec, core/objectives.py: simple (L_hybrid where variance is learned), vlb, vdm ...
    "teacher": "",  # workdir of a trained model, for an objective that learns from one: progressive(steps=...)
    "weighting": "constant",  # spec, core/weightings.py
    "distance": "l2",  # spec, core/losses.py
    "vlb_weight": 0.001,  # of L_vlb in L_hybrid, where the prediction has learned_variance=True
    "model": {
        "name": "unet",  # a family of nets/families.py, or package.module.Class, whose options are further keys
        "num_classes": 0,  # 0: unconditional
        "dtype": "float32",  # of the computation; parameters are float32 always
    },
    "text": "",  # spec, models/text.py: transformer(...), trained along; frozen, huggingface(folder=...) or clip_pair
    "spatial": (),  # specs, models/conditions: low_resolution(...), inpaint(), map(...), size_and_crop(), mypkg.Mine()
    "level_scale": 1000.0,  # times a level of noise augmentation in [0, 1), as sinusoids are made for 0 .. 1000
    "condition_dropout": 0.1,  # probability of no class and no caption in training, for guidance
    "latent": "",  # workdir of an autoencoder, in whose latent space the model works; "": in pixels
    "autoencoder": {  # of task autoencoder
        "channels": 128,  # at full size, times each of multipliers at the levels
        "latent_channels": 4,  # channels of a latent
        "multipliers": (1, 2, 4, 4),  # f = 2^(levels - 1)
        "blocks": 2,  # residual blocks of a level of the encoder; the decoder has one more
        "attention": (),  # downsampling factors
        "mid_attention": True,  # attention in the middle, at the latent's size
        "groups": 32,  # of the group norms; divides every number of channels
        "quant_convs": True,  # a 1 x 1 convolution on each side of the latent, as in Stable Diffusion's
        "dtype": "float32",  # of the computation; parameters are float32 always
        "distance": "l1",  # l1 | l2
        "kl_weight": 1e-6,  # of the divergence of a latent's distribution from N(0, 1)
        "perceptual": "",  # file of LPIPS weights; "": no perceptual loss
        "perceptual_sha256": "",  # of that file, refused if it is another; "": not checked
        "perceptual_weight": 1.0,  # of the perceptual loss beside the distance
        "adversarial_weight": 0.5,  # times the adaptive weight
        "adversarial_start": -1,  # step from which the discriminator counts; -1: never
        "discriminator_channels": 64,  # of its first layer, doubled by each that follows up to 8 times
        "discriminator_layers": 3,  # strided layers of the patch discriminator
    },
    "optimizer": {
        "name": "adam",  # adam | adamw | muon
        "learning_rate": 2e-4,  # at its peak, after the warm-up
        "warmup": 0,  # steps
        "decay": "constant",  # constant | cosine (to 0 at the last step)
        "b1": 0.9,  # decay of the mean of gradients
        "b2": 0.999,  # decay of the mean of their squares
        "eps": 1e-8,  # added to the root of that mean
        "weight_decay": 0.0,  # adamw and muon
        "mean_dtype": "float32",  # float32 | bfloat16: how the mean of gradients is kept; the latter has half the bytes
        "clip": 1.0,  # global norm of the gradient; 0 does not clip
    },
    "ema": {
        "decay": 0.9999,  # of the average of the parameters that is sampled, a step
        "warmup": True,  # whether the decay starts small, so that the average forgets its start
        "profiles": (),  # sigma_rel of averages kept for `sample --ema=LENGTH`, such as (0.05, 0.10); (): none
        "every": 0,  # steps between snapshots of them
    },
    "train": {
        "steps": 1000,  # at which training ends
        "batch_size": 128,  # global, whatever the mesh
        "accumulate": 1,  # micro-batches a step
        "steps_per_dispatch": 1,  # steps in one call to the device
        "nonfinite_limit": 10,  # steps in a row without a finite loss before a roll-back to a checkpoint
        "nonfinite_rollbacks": 2,  # roll-backs, of either kind, before the run gives up
        "spike_factor": 0.0,  # a loss this many times its running median is a spike; 0: none is
        "spike_window": 100,  # steps of the median
        "spike_limit": 10,  # spikes in a row before a roll-back
        "hang_seconds": 0,  # a phase that takes longer ends the run (sampling, compiling: ten times); 0: none
    },
    "mesh": {  # sizes of its axes
        "data": -1,  # devices that the batch is split over; -1: all that the others leave
        "fsdp": 1,  # devices that parameters and optimizer state are split over too
        "tensor": 1,  # devices that the network's layers are split over
        "context": 1,  # devices that the tokens of transformers and of self-attention are split over
        "slices": 1,  # slices, or groups of GPUs, of the machine: data is split over them first, the rest within one
        "zero": False,  # split optimizer state and averages over data too (arXiv:1910.02054)
    },
    "log": {
        "to": ("tensorboard",),  # where metrics, grids, config go beside metrics.jsonl: tensorboard | wandb | mlflow
        "project": "",  # project of W&B, experiment of MLflow; "": that of their environment, or diffusion_jax
    },
    "log_every": 50,  # steps, as all that follow
    "checkpoint": {
        "every": 1000,  # steps between checkpoints; 0: the last step alone
        "keep": 2,  # how many of the newest checkpoints are kept
        "keep_every": 0,  # 0: only the newest `keep`
        "best": 0,  # keep so many of the best too, by an evaluation in training
        "best_metric": "fd",  # a score of `evaluate`
        "direction": "min",  # min | max: which is better
        "copy": "auto",  # auto | device | host: where a state is copied to before the next step overwrites it
        "mirror": "",  # address that fsspec knows, gs://bucket/run: a copy of the workdir, to go on from
    },
    "sample": {
        "every": 1000,  # a grid of samples in training; 0: none
        "num": 64,  # samples in that grid
        "sampler": "ddpm",  # spec, core/samplers
        "grid": "trailing",  # spec, core/grids.py
        "steps": 1000,  # steps of the sampler
        "guidance": 1.0,  # classifier-free; 1 is none
        "guidance_rescale": 0.0,  # phi of arXiv:2305.08891
        "guidance_interval": (),  # (low, high) of sigma / alpha; () is everywhere
        "threshold": "static",  # of x0 at every step: none | static | dynamic, a spec, core/denoisers.py
        "decode_tile": 0,  # latents on a side of what is decoded at once; 0: all
        "prompts": (),  # of the grid in training; (): captions of the data
    },
    "evaluate": {  # in training, as `diffusion-jax evaluate` does, of samples as `sample` says
        "every": 0,  # 0: never
        "num": 1000,  # samples that are drawn
        "metrics": ("fd",),  # names, as of `evaluate --metrics`
        "features": "",  # inception, clip, or the workdir of a classifier
        "weights": "",  # of inception and clip
        "clip": "",  # folder of the model of clip_score
        "reference": "",  # .npz of statistics; "": real images
        "real": -1,  # real images to compare with; 0: all, -1: num
        "kid_size": 1000,  # images in a subset of kid
        "kid_subsets": 100,  # subsets of kid
        "seed": 0,  # of the first sample
        "batch": 64,  # images at once
        "split": "",  # of the real images; "": that of training
    },
}

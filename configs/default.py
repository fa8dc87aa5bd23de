"""Every field of a config, with its default. An experiment is a small file of differences from this one."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The default config; locked, so that a mistyped field is an error."""
    config = ConfigDict()
    config.seed = 0  # of the weights, the data order, the noise and the data split
    config.device = "cpu"  # "cpu", "cuda", "cuda:1", "mps"
    config.sde = "vp"  # the path: vp(beta_min=0.1, beta_max=20), subvp, ve, edm, cosine, rectified_flow

    config.model = ConfigDict()
    config.model.network = "mlp"  # mlp(width=256, depth=3), or unet(channels=[32, 64]) with the extra "images"
    config.model.predicts = "edm"  # what the network's output is: x0, eps, v, score, velocity, edm (preconditioned)
    config.model.time_label = (
        "c_noise"  # what it is told of the time: t, 999t, 1000t, index, sigma, ... (scoresde.models.time_labels)
    )
    config.model.num_train_timesteps = placeholder(int)  # N of labels that count steps; a chain's own, else 1000
    config.model.round_labels = False  # show it the nearest label of its training, for labels that count steps
    config.model.learned_variance = False  # it answers with the variance of ddpm(variance=learned) too
    config.model.sigma_data = 0.75  # standard deviation of the data, for predicts = "edm"

    config.data = ConfigDict()
    config.data.name = "digits"  # digits (scikit-learn), idx (MNIST files in a folder), file (.npy, .npz)
    config.data.path = ""  # the folder or the file
    config.data.bin_width = placeholder(float)  # distance between levels of discrete data; known for digits and idx
    config.data.dequantise = True  # train on data spread over their bins, where a bin width is known

    config.training = ConfigDict()
    config.training.steps = 6000  # optimiser updates
    config.training.batch_size = 128  # samples per update
    config.training.learning_rate = 2e-3  # of AdamW, after the warm-up
    config.training.weight_decay = 0.0  # of AdamW
    config.training.warmup = 100  # updates over which the learning rate rises linearly
    config.training.clip = 1.0  # largest norm of the gradient
    config.training.ema_decay = 0.999  # of the averaged weights, which all the other commands use
    # what training minimises: dsm, hybrid (learned variance), chain_bound, continuous_bound
    config.training.loss = "dsm(target=edm, times=lognormal(mean=-1.0, std=1.2))"
    config.training.target = placeholder(str)  # instead of the loss's own: eps, x0, v, velocity, edm
    config.training.times = placeholder(str)  # instead of the loss's own: uniform, lognormal, logsnr, discrete
    config.training.log_every = 50  # updates between lines of train.jsonl
    config.training.checkpoint_every = 1000  # updates between checkpoints
    config.training.keep = 2  # checkpoints kept

    config.sampling = ConfigDict()
    config.sampling.solver = "dpmpp_2m"  # see `scoresde solvers`
    config.sampling.grid = placeholder(str)  # karras (default), uniform, quadratic, logsnr, explicit(times=[...])
    config.sampling.steps = 20  # of the grid; adaptive solvers choose their own
    config.sampling.nfe = placeholder(int)  # instead of steps: a budget of model evaluations
    config.sampling.noise = "seeded"  # or brownian: the same path of a seed at any number of steps
    config.sampling.batch_size = 512  # samples carried at once; does not change them

    config.likelihood = ConfigDict()
    config.likelihood.solver = placeholder(str)  # deterministic; by default adams_adaptive, or heun for steps
    config.likelihood.grid = placeholder(str)  # logsnr (default) or another
    config.likelihood.steps = placeholder(int)  # of the grid; adaptive solvers choose their own
    config.likelihood.nfe = placeholder(int)  # instead of steps: a budget of model evaluations
    config.likelihood.tolerance = placeholder(float)  # instead of steps: a total error, in bits/dim or else nats
    config.likelihood.error = True  # measure the solver's error with two coarser solves
    config.likelihood.dequantiser = "uniform"  # of discrete data; truncated_normal, variational(path=FILE)
    config.likelihood.draws = 1  # of it, importance-weighted: a solve each, for a tighter bound
    config.likelihood.bound = placeholder(str)  # also a bound: of a chain, ddpm(variance=beta), or continuous
    config.likelihood.bound_indices = placeholder(int)  # its evaluations; by default all, and 128 of continuous
    config.likelihood.divergence = "hutchinson(probes=4)"  # or exact
    config.likelihood.batch_size = 256  # samples carried at once and kept together; does not change the values
    return config.lock()

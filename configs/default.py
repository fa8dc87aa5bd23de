"""Every field of a config, with its default. A config of an experiment is a small file that changes some fields."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The default config; locked, so that a mistyped field is an error."""
    config = ConfigDict()
    config.seed = 0  # seed of the weights, the data order, the noise and the data split
    config.device = "cpu"  # "cpu", "cuda", "cuda:1", "mps"
    config.sde = "vp"  # the path: vp(beta_min=0.1, beta_max=20), subvp, ve, edm, cosine, rectified_flow
    # instead of a path, for data of whole numbers: absorbing, uniform, binomial, absorbing(schedule=cosine), ...; the
    # data decide its number of states
    config.process = placeholder(str)

    config.model = ConfigDict()
    config.model.network = "mlp"  # mlp(width=256, depth=3); unet(channels=[32, 64]), dit; of tokens transformer
    # the network's output: x0, eps, v, score, velocity, edm (preconditioned); with a process x0_logits, x0_loo_logits
    # or log_score
    config.model.predicts = "edm"
    config.model.time = True  # with a process: whether the network receives the time
    # the number that the network gets for the time: t, 999t, 1000t, index, sigma, ... (scoresde.models.time_labels)
    config.model.time_label = "c_noise"
    config.model.num_train_timesteps = placeholder(int)  # N of labels that count steps; default: the chain's, else 1000
    config.model.round_labels = False  # round labels that count steps to those of the training
    config.model.learned_variance = False  # the network also returns a variance, for ddpm(variance=learned)
    config.model.condition_dropout = 0.0  # share of the samples that are trained without their conditions, for guidance
    config.model.condition_dropout_each = 0.0  # of several conditions: share that is trained without one alone
    # noise of conditions that are vectors or images: none, same, scaled(c=0.1), geometric(largest=1), decay(start, end,
    # steps); by the names of their paper: cde, cdiffe, cmde, vs_cmde
    config.model.condition_noise = "none"
    # the network receives its own first estimate; each evaluation of the model is then two of the network
    config.model.self_conditioning = False
    config.model.sigma_data = placeholder(float)  # for predicts = "edm"; default: the deviation of the data, two digits

    config.data = ConfigDict()
    # digits (scikit-learn), images (a folder), idx (MNIST's files), cifar, file (.npy, .npz, .safetensors),
    # huggingface; of tokens also text, bytes, heartbeat; auto for what is at the path
    config.data.name = "digits"
    config.data.path = ""  # the folder or file
    config.data.size = placeholder(str)  # of images: 64 or 64x48, height x width; default: theirs
    config.data.resize = "bicubic"  # the filter of a change of size: nearest, box, bilinear, bicubic, lanczos
    config.data.crop = "center"  # cut the middle out when the form differs; none: stretch
    config.data.channels = placeholder(int)  # of images: 1 grey, 3 colours, 4 and opacity; default: theirs
    config.data.skip_corrupt = False  # leave out images that cannot be read
    config.data.labels = "auto"  # the conditions: names of columns or .npy files; off for none
    config.data.classes = placeholder(int)  # how many classes there are; default: as many as occur
    config.data.length = placeholder(int)  # of tokens: of a sample of a text (64) or of the heartbeat (20)
    config.data.period = 5  # of the heartbeat: every so manieth bit is 1
    config.data.levels = placeholder(
        int
    )  # of tokens: join the levels of the source into so many, 2 for black and white
    config.data.states = placeholder(int)  # of tokens: how many values they have; default: those that occur
    config.data.bin_width = placeholder(float)  # distance between levels, for numbers that stay as they are
    config.data.augmentation = "none"  # of images: flip, or edm(probability=0.12) with its label
    config.data.dequantise = True  # train on data spread over their bins, where a bin width is known

    config.training = ConfigDict()
    config.training.steps = 6000  # optimiser updates
    config.training.batch_size = 128  # samples per update
    config.training.learning_rate = 2e-3  # AdamW's, after the warm-up
    config.training.weight_decay = 0.0  # AdamW's
    config.training.warmup = 100  # updates over which the learning rate rises linearly
    config.training.schedule = "constant"  # after the warm-up: constant, cosine(end=0), inverse_sqrt(after=2000)
    config.training.clip = 1.0  # largest norm of the gradient
    config.training.precision = "float32"  # or bf16, fp16: the network's products in 16 bits
    config.training.accumulate = 1  # parts of a batch that are computed one after the other, to save memory
    config.training.compile = False  # run the network through torch.compile
    # averages of the weights, of which all other commands use the first: ema(decay=0.999), half_life(samples=500000),
    # power(std=0.1); several with commas between
    config.training.averages = "ema(decay=0.999)"
    # the loss: dsm, sliced, hybrid (learned variance), chain_bound, continuous_bound; with a process masked,
    # score_entropy, discrete_bound, flow_kl, cross_entropy, reweighted, sundae
    config.training.loss = "dsm(weighting=edm, times=lognormal(mean=-1.0, std=1.2))"
    config.training.weighting = placeholder(
        str
    )  # replaces that of the loss: dsm, uniform, v, flow, edm, edm2, min_snr, ...
    config.training.times = placeholder(str)  # replaces the times of the loss: uniform, lognormal, logsnr, discrete
    config.training.log_every = 50  # updates between lines of train.jsonl
    config.training.checkpoint_every = 1000  # updates between checkpoints
    # updates between evaluations: held-out losses, samples, the page training.html; 0 for none
    config.training.evaluate_every = 1000
    config.training.evaluate_likelihood = 0  # held-out samples whose likelihood each evaluation computes
    config.training.max_minutes = placeholder(float)  # end with a checkpoint after so many minutes
    config.training.keep = 2  # how many checkpoints to keep, the last ones
    config.training.keep_every = placeholder(int)  # also keep those after a multiple of so many updates
    # updates between snapshots of the power averages, from which sampling.ema reconstructs any other
    config.training.snapshot_every = placeholder(int)

    config.sampling = ConfigDict()
    config.sampling.solver = placeholder(str)  # see `scoresde solvers`; default: few, or ipndm above 12 NFE
    config.sampling.grid = placeholder(str)  # karras (default of a named solver), logsnr, explicit(times=[...]), ...
    config.sampling.steps = placeholder(int)  # steps of the grid; default: 20; adaptive solvers choose their own
    config.sampling.nfe = placeholder(int)  # instead of steps: a budget of model evaluations
    config.sampling.forwards = placeholder(int)  # instead of nfe: a budget of evaluations of the network
    config.sampling.guidance = placeholder(str)  # cfg(scale=3, interval=[0.2, 5]), see `scoresde guidances`
    config.sampling.condition = placeholder(str)  # y=7, or the path of a .npz file with rows by name
    config.sampling.operator = placeholder(str)  # of scoresde restore: inpaint(mask=mask.npy, sigma=0.05), ...
    config.sampling.observation = placeholder(str)  # a .npy file with one observation, or one in each row
    config.sampling.posterior = placeholder(str)  # mmps(iterations=5), see `scoresde posteriors`
    config.sampling.noise = "seeded"  # or brownian: a seed gives the same Brownian path at any number of steps
    config.sampling.fresh_conditions = False  # with condition_noise: new noise at each evaluation, not one path
    config.sampling.batch_size = 512  # samples computed together; does not change their values
    # the width of the power average of the weights, also for the likelihood; default: the first of training.averages
    config.sampling.ema = placeholder(float)

    config.likelihood = ConfigDict()
    config.likelihood.solver = placeholder(str)  # deterministic; default: adams_adaptive; heun with steps or nfe
    config.likelihood.grid = placeholder(str)  # logsnr (default) or any other
    config.likelihood.steps = placeholder(int)  # steps of the grid; adaptive solvers choose their own
    config.likelihood.nfe = placeholder(int)  # instead of steps: a budget of model evaluations
    config.likelihood.tolerance = placeholder(float)  # instead of steps: a total error, in bits/dim or nats
    config.likelihood.error = True  # measure the solver's error with two coarser solves
    config.likelihood.dequantiser = "uniform"  # for discrete data; or truncated_normal, variational(path=FILE)
    # draws of the dequantiser, importance-weighted: one solve each, for a tighter bound; with a process, trajectories
    config.likelihood.draws = 1
    config.likelihood.bound = placeholder(str)  # also compute a bound: ddpm(variance=beta), of a chain; or continuous
    config.likelihood.bound_indices = placeholder(int)  # evaluations of the bound; default: all; continuous: 128
    config.likelihood.divergence = placeholder(str)  # hutchinson(probes=4), or exact in at most 4 dimensions (default)
    config.likelihood.batch_size = 256  # samples computed together, one shard; does not change their values
    return config.lock()

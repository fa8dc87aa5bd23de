"""Calls every public function once in a new process and prints, as JSON, what each has changed besides its result.

A new process, because the first use of a function imports libraries, and imports change global state too.
"""

import contextlib
import json
import locale
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import nn

import scoresde
import solvers
from scoresde.benchmark.runner import benchmark
from scoresde.benchmark.truth import ode_solution
from scoresde.cli.parser import main
from scoresde.models.problem import Diffusion

SDE = scoresde.VP()
# what torch and scikit-learn set for themselves when they are imported; to unset it would undo what they do it for
OF_LIBRARIES = {"TORCHINDUCTOR_CACHE_DIR", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}
SMALL = ["--config.model.network=mlp(width=16, depth=1)", "--config.training.steps=8", "--config.seed=3"]


class Net(nn.Module):
    """A network in training mode with everything that a call could leave changed: dropout, running statistics, a
    frozen layer, a gradient, a part in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop, self.last = (
            nn.Linear(3, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.2),
            nn.Linear(8, 2),
        )
        self.first.requires_grad_(False)
        self.drop.eval()
        self.last.weight.grad = torch.ones(2, 8)
        self.left = float("inf")  # evaluations until it fails

    def forward(self, x, label):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the network fails")
        hidden = torch.tanh(self.norm(self.first(torch.cat([x, label[:, None].to(x)], 1).to(self.first.weight))))
        return self.last(self.drop(hidden)).to(x.dtype)


def of_network(network):
    """Everything that a network's user sees of it, as text."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    return {
        "mode": [part.training for part in network.modules()],
        "flags": [p.requires_grad for p in network.parameters()],
        "gradients": [p.grad is not None and p.grad.flatten().tolist() for p in network.parameters()],
        "places": [(name, str(x.device), str(x.dtype), x._version) for name, x in tensors],
        "numbers": [x.detach().double().flatten().tolist() for _, x in tensors],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules()],
    }


def of_process():
    """The global state of the process, by name."""
    generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]
    return {
        "torch's generators": [state.tolist() for state in generators],
        "numpy's generator": repr(np.random.get_state(legacy=False)) + str(np.random.get_state()[1].tolist()),
        "random's generator": random.getstate(),
        "defaults of tensors": (str(torch.get_default_dtype()), str(torch.get_default_device())),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradient modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": [(torch.is_autocast_enabled(d), str(torch.get_autocast_dtype(d))) for d in ("cpu", "cuda")],
        "determinism": (
            torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32, torch.backends.mkldnn.enabled,
            torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "torch's printing": str(vars(torch._tensor_str.PRINT_OPTS)),
        "numpy's errors": (np.geterr(), np.geterrcall(), str(np.get_printoptions())),
        "filters of warnings": [str(entry) for entry in warnings.filters],
        "display of warnings": (id(warnings.showwarning), id(warnings.formatwarning)),
        # not by matplotlib.rcParams[...], which would choose a backend
        "matplotlib": {name: str(dict.__getitem__(matplotlib.rcParams, name)) for name in matplotlib.rcParams},
        "log": [
            (name, logging.getLogger(name).level, list(map(id, logging.getLogger(name).handlers)))
            for name in (None, "solvers", "scoresde", "py.warnings")
        ] + [logging.root.manager.disable],
        "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "path": list(sys.path),
        "environment": {name: text for name, text in os.environ.items() if name not in OF_LIBRARIES},
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "hooks": [id(h) for h in (sys.excepthook, sys.displayhook, threading.excepthook, sys.stdout, sys.stderr)],
        "recursion limit": sys.getrecursionlimit(),
    }  # fmt: skip


def calls(folder, given, denoiser, network):
    """The public functions: a call of each, by name."""
    x = torch.linspace(-1, 1, 16).reshape(8, 2)
    exact = scoresde.targets.Gaussian([0.0, 0.0], 0.25).denoiser(SDE)
    nodes = solvers.grid("logsnr", SDE, 4)
    program = solvers.trace("heun", nodes, SDE)
    problem = Diffusion(exact)
    flow = scoresde.VariationalDequantiser((2,), layers=0, width=4)
    start = torch.linspace(-2, 2, 32).reshape(16, 2).double()
    law, levels = folder / "law.safetensors", torch.zeros(8, 2).double()
    scoresde.save_dequantiser(flow, law)
    sigmas = torch.tensor([2.0, 1.0, 0.0])
    seen, y = scoresde.operators.Matrix(torch.tensor([[1.0, 1.0]]), sigma=0.5), torch.zeros(1)

    tokens = scoresde.targets.DiscreteEmpirical(torch.tensor([[0, 1], [1, 1]])).denoiser(scoresde.Absorbing(2))

    def tune():
        reference = solvers.trajectory(problem, start, SDE, steps=12)
        return solvers.tune_grid("heun", problem, 6, reference, runs=5, starts=1)

    def tune_numbers():
        truths = [solvers.trajectory(problem, part, SDE, steps=12) for part in start.split(8)]
        return solvers.tune_program("ddim", problem, 4, truths[0], validation=truths[1], iterations=3, grid="logsnr")

    def scheduler():
        made = scoresde.interop.DiffusersScheduler("heun", "vp", grid="trailing")
        made.set_timesteps(2)
        for t in made.timesteps:
            made.step(x, t, x)

    public = {
        "sample": lambda: scoresde.sample(denoiser, (2,), 4, steps=3),
        "sample, adaptive": lambda: scoresde.sample(denoiser, (2,), 4, "rk45(rtol=0.1, atol=0.1)"),
        "sample, noise": lambda: scoresde.sample(denoiser, (2,), 4, "ddpm", steps=3, noise="brownian"),
        "sample, scipy": lambda: scoresde.sample(denoiser, (2,), 4, "scipy(method=RK45, rtol=0.1)"),
        "sample, torchdiffeq": lambda: scoresde.sample(denoiser, (2,), 4, "torchdiffeq(method=dopri5, rtol=0.1)"),
        "guide": lambda: scoresde.sample(scoresde.guide(denoiser, "rescale(cfg(scale=1))"), (2,), 4, steps=3),
        "condition": lambda: scoresde.sample(scoresde.condition(exact, seen, y, "mmps", shape=(2,)), seeds=4, steps=3),
        "restore": lambda: scoresde.restore(denoiser, seen, y, "mmps", samples=2, steps=3, shape=(2,)),
        "restore, particles": lambda: scoresde.restore(exact, seen, y, "tds(particles=4)", samples=2, steps=3),
        "encode": lambda: scoresde.encode(denoiser, x, "heun", steps=3),
        "log_prob": lambda: scoresde.log_prob(denoiser, x, steps=4),
        "log_prob, adaptive": lambda: scoresde.log_prob(denoiser, x),
        "log_prob, gradient": lambda: scoresde.log_prob(exact, x, steps=4, differentiable=True),
        "log_prob, tolerance": lambda: scoresde.log_prob(exact, x, tolerance=0.1),
        "log_prob, dequantised": lambda: scoresde.log_prob(denoiser, levels, steps=4, bin_width=0.5, dequantiser=flow),
        "sample_with_log_prob": lambda: scoresde.sample_with_log_prob(denoiser, (2,), 4, steps=4),
        "chain_bound": lambda: scoresde.chain_bound(denoiser, x, chain=scoresde.chains.Chain(SDE, 4)),
        "continuous_bound": lambda: scoresde.continuous_bound(denoiser, x, draws=4),
        "discrete_bound": lambda: scoresde.discrete_bound(tokens, torch.tensor([[0, 1]]), draws=4),
        "keep": lambda: scoresde.sample(scoresde.keep(tokens, torch.tensor([0, -1])), seeds=2, solver="first_hitting"),
        "make_process": lambda: scoresde.make_process("uniform(2)"),
        "plug_in_bound": lambda: scoresde.plug_in_bound(denoiser, x, steps=4),
        "check": lambda: scoresde.check(denoiser, x),
        "plan": lambda: scoresde.plan(denoiser, "dpmpp_2m", steps=4),
        "trajectory, of a model": lambda: scoresde.trajectory(denoiser, (2,), 4, 4),
        "eps_power": lambda: scoresde.eps_power(denoiser, x),
        "dequantise": lambda: scoresde.dequantise(levels, 0.5, range(8)),
        "fit_dequantiser": lambda: scoresde.fit_dequantiser(denoiser, levels, 0.5, iterations=2, batch=4, steps=4),
        "save_dequantiser": lambda: scoresde.save_dequantiser(flow, folder / "other.safetensors"),
        "load_dequantiser": lambda: scoresde.load_dequantiser(law),
        "load": lambda: scoresde.load(given / "run"),
        "load, diffusers": lambda: scoresde.load(f"diffusers:{given / 'pipe'}"),
        "make_sde": lambda: scoresde.make_sde("learned_vp"),
        "label_shift": lambda: scoresde.label_shift(denoiser, nodes),
        "time_labels": lambda: scoresde.time_labels(denoiser, nodes),
        "train": lambda: scoresde.train(network, x, predicts="eps", steps=3, batch_size=4, progress=False),
        "benchmark": lambda: benchmark(denoiser, x, ["heun", "ddpm"], [5], 8, shape=(2,), truth_steps=8),
        "ode_solution": lambda: ode_solution(denoiser, (2,), range(4), 8),
        "DiffusersScheduler": scheduler,
        "sample_function": lambda: scoresde.interop.sample_function("heun")(lambda x, s: x / 2, x, sigmas),
        "solve": lambda: solvers.solve(solvers.make("heun"), problem, x, nodes),
        "trajectory": lambda: solvers.trajectory(problem, x.double(), SDE, steps=4),
        "tune_grid": tune,
        "tune_program": tune_numbers,
        "choose": lambda: solvers.choose(problem, 4, solvers.trajectory(problem, start, SDE, steps=12), ["ddim"]),
        "trace": lambda: solvers.trace("dpmpp_2m", nodes, SDE),
        "as_problem": lambda: solvers.as_problem(exact),
        "convert_eta": lambda: solvers.convert_eta(0.5, "sde", "azula_ddim"),
        "difference": lambda: solvers.difference(program, program),
        "equal": lambda: solvers.equal(program, program),
        "evaluations": lambda: solvers.evaluations(solvers.make("heun"), SDE, nodes),
        "generator": lambda: solvers.generator(1),
        "grid": lambda: solvers.grid("karras", SDE, 4),
        "info": lambda: solvers.info("heun"),
        "make": lambda: solvers.make("heun"),
        "names": lambda: solvers.names(),
        "register": lambda: solvers.register("not_used"),
        "resolve": lambda: solvers.resolve("DPM++ 2M Karras"),
        "response": lambda: solvers.response(program),
        "startup": lambda: solvers.startup(solvers.make("heun"), SDE),
        "steps_of_nfe": lambda: solvers.steps_of_nfe(solvers.make("heun"), solvers.grids.make("karras"), SDE, 9),
        "terminal_covariance": lambda: solvers.terminal_covariance(program, 0.25),
    }  # fmt: skip
    (folder / "times.txt").write_text("80, 2, 0.5")
    run, fast = f"--workdir={given / 'run'}", "--seeds=8"
    commands = {
        "demo": ["demo", "--fast", f"--out={folder / 'demo'}", *SMALL],
        "train": ["train", "--config=digits_vp", f"--workdir={folder / 'again'}", *SMALL],
        "sample": ["sample", run, fast, "--steps=3", f"--out={folder / 'samples'}"],
        "restore": [
            *("restore", run, "--operator=downsample(2, sigma=0.1)", "--measure=test", "--samples=2", "--steps=3"),
            f"--out={folder / 'restored'}",
        ],
        "likelihood": ["likelihood", run, "--limit=4", "--steps=4", f"--out={folder / 'likelihood'}"],
        "benchmark": ["benchmark", run, fast, "--solvers=ddim", "--nfe=5", f"--out={folder / 'bench'}"],
        "rerun": ["rerun", f"{folder / 'bench'}"],  # of the command before
        "benchmark, of a target": [
            *("benchmark", "--target=gaussian([0, 0])", fast, "--solvers=ddim", "--nfe=5", "--grids=karras,logsnr"),
            f"--out={folder / 'law'}",
        ],
        "benchmark, of diffusers": [
            *("benchmark", f"--diffusers={given / 'pipe'}", fast, "--solvers=ddim", "--nfe=2"),
            f"--out={folder / 'pipeline'}",
        ],
        "compare": ["compare", f"{folder / 'bench'}", f"{folder / 'bench'}"],
        "choose": ["choose", run, "--nfe=4", "--seeds=8", "--solvers=ddim", "--grids=logsnr", "--without-tuning"],
        "tune": [
            "tune",
            run,
            "--nfe=4",
            "--samples=4",
            "--solvers=ddim",
            "--grids=logsnr",
            "--iterations=2",
            f"--out={folder / 'tuned'}",
        ],
        "import-solver": [
            *("import-solver", f"{folder / 'times.txt'}", "--kind=gits", f"--out={folder / 'gits.json'}"),
        ],
        "solvers": ["solvers", "heun", "--steps=2", "--show", f"--out={folder / 'heun.png'}"],
        "check-solver": ["check-solver", "euler"],
        "check-posterior": ["check-posterior", "jfps"],
        "guidances": ["guidances", "cfg"],
        "posteriors": ["posteriors", "tds"],
        "operators": ["operators", "inpaint"],
    }
    return public | {f"scoresde {name}": lambda argv=argv: command(argv) for name, argv in commands.items()}


def command(argv):
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        assert main(argv) == 0, argv


def changes(call, network):
    """What a call changes, by name: before and after, shortened; and its error, or None."""
    before, mine, error = of_process(), of_network(network), None
    try:
        call()
    except Exception as reason:
        error = f"{type(reason).__name__}: {reason}"
    changed = {}
    for old, new in ((before, of_process()), (mine, of_network(network))):
        changed |= {name: shown(old[name], new[name]) for name in old if old[name] != new[name]}
    return changed, error


def shown(old, new):
    """Two different values, shortened to where they differ."""
    if isinstance(old, dict):
        return [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if isinstance(old, list) and len(old) != len(new):
        return [str(entry) for entry in new if entry not in old]
    return [str(old)[:200], str(new)[:200]]


def results(given):
    """What each call has changed, and its error, by the name of the call.

    Every call once; those that use the network again in the other modes of autograd, and with a network that fails.
    """
    folder, found, uses, made = Path(tempfile.mkdtemp()), {}, {}, []
    os.chdir(folder)
    warnings.simplefilter("ignore", UserWarning)
    _ = scoresde.sample  # imports torch and all public functions

    def prepare():
        network = Net()
        denoiser = scoresde.Denoiser(network, SDE, "eps", "t", shape=(2,))
        made.append((network, calls(folder, given, denoiser, network)))

    none = contextlib.nullcontext
    modes = {"": none, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "failing": none}
    for mode, context in modes.items():
        found[f"prepare {mode}"] = changes(prepare, nn.Identity())
        del found[f"prepare {mode}"][0]["torch's generators"]  # a new module draws its weights from them
        network, table = made[-1]
        for name, call in table.items():
            if (mode and not uses[name]) or (context is not none and name == "train"):
                continue
            network.left = began = 1 if mode == "failing" else 1_000_000
            with context():
                found[f"{name} {mode}".strip()] = changes(call, network)
            uses[name] = uses.get(name, False) or network.left < began
    return found


if __name__ == "__main__":
    sys.stderr.write("\n" + json.dumps(results(Path(sys.argv[1]))))

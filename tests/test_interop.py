"""DiffusersScheduler in loops like those of diffusers' pipelines: the numbers are this library's own."""

import copy
import json
import math
import pickle

import diffusers
import pytest
import torch
from foreign_loops import (
    CHAIN,
    LINEAR,
    REQUIRED,
    VARIANTS,
    ddim,
    denoiser,
    first_state,
    gap,
    loop,
    network,
    sampled,  # noqa: F401  (a fixture)
    seeded,
    solved,
    start,
)

import scoresde
import solvers
from scoresde import InputError
from scoresde.interop import DiffusersScheduler

FLOW = scoresde.RectifiedFlow(t_max=1 - 1e-6)
TRAILING = solvers.grid("trailing", CHAIN, 9)


@pytest.mark.parametrize("spec", LINEAR + VARIANTS)
def test_every_linear_solver_in_a_loop(spec, sampled):  # noqa: F811
    scheduler = DiffusersScheduler(spec, ddim(), "trailing")
    scheduler.set_timesteps(9)
    x = start()
    begun = first_state(spec, TRAILING, CHAIN, "eps", x, seeded())
    assert gap(loop(scheduler, begun, seeded()), solved(denoiser(), spec, TRAILING, x, seeded())) < 1e-10
    x = start(dtype=torch.float32)
    begun = first_state(spec, TRAILING, CHAIN, "eps", x, seeded())
    ours = sampled(denoiser(), spec, "trailing", x, seeded(), steps=9)
    assert gap(loop(scheduler, begun, seeded()), ours) < (1e-4 if solvers.make(spec).parallel else 1e-6)


@pytest.mark.parametrize("spec", [*LINEAR, *VARIANTS, "heun(quantity=velocity)"])
def test_every_linear_solver_on_a_flow(spec):
    nodes, x = solvers.grid("logsnr(end=zero)", FLOW, 9, t_max=0.999), start()
    scheduler = DiffusersScheduler(spec, diffusers.FlowMatchEulerDiscreteScheduler(), "logsnr(end=zero)")
    scheduler.set_timesteps(9)
    begun = first_state(spec, nodes, FLOW, "velocity", x, seeded())
    ours = solved(denoiser(FLOW, "velocity", "1000t"), spec, nodes, x, seeded())
    assert gap(loop(scheduler, begun, seeded()), ours) < 1e-10


@pytest.mark.parametrize("spec", REQUIRED)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_other_outputs(spec, prediction):
    scheduler = DiffusersScheduler(spec, ddim(prediction_type=prediction), "trailing")
    scheduler.set_timesteps(9)
    ours = solved(
        denoiser(predicts={"sample": "x0", "v_prediction": "v"}[prediction]), spec, TRAILING, start(), seeded()
    )
    assert gap(loop(scheduler, start(), seeded()), ours) < 1e-10


@pytest.mark.parametrize("spec", REQUIRED)
def test_inside_edms_preconditioning(spec):
    scheduler = DiffusersScheduler(spec, diffusers.EDMEulerScheduler(sigma_max=20.0, sigma_data=0.7))
    scheduler.set_timesteps(9)
    sde = scoresde.EDM(t_max=20.0)
    assert scheduler.init_noise_sigma == pytest.approx(math.hypot(20, 1))
    assert scheduler.timesteps[0].item() == pytest.approx(math.log(20) / 4)
    x = 20 * start()
    model = scoresde.Denoiser(network, sde, "edm", sigma_data=0.7)
    assert gap(loop(scheduler, x, seeded()), solved(model, spec, solvers.grid("karras", sde, 9), x, seeded())) < 1e-10


@pytest.mark.parametrize("name", [name for name in solvers.names() if not solvers.make(name).linear])
def test_other_solvers_are_refused_by_name(name):
    method = solvers.make(name)
    with pytest.raises(InputError) as caught:
        DiffusersScheduler(name, "vp")
    assert str(caught.value) == f"{method} cannot be driven step by step: {method.nonlinear}"


def test_what_a_loop_sees():
    scheduler = DiffusersScheduler("heun", ddim(), "trailing")
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 666, 666, 332, 332]
    assert (scheduler.timesteps.dtype, scheduler.order, len(scheduler)) == (torch.int64, 2, 1000)
    ratios = [CHAIN((i + 1) / 1000).ratio for i in (999, 666, 666, 332, 332)]
    assert scheduler.sigmas.tolist() == pytest.approx([*ratios, 0], rel=1e-6)
    assert scheduler.init_noise_sigma == pytest.approx(1, abs=1e-12)
    assert (scheduler.step_index, scheduler.begin_index, scheduler.num_inference_steps) == (None, None, 3)
    between = DiffusersScheduler("dpm_2", ddim(), "trailing")
    between.set_timesteps(3)
    middle = math.exp(0.5 * (math.log(ratios[0]) + math.log(ratios[1])))  # the method's own: half-way in lam
    assert between.sigmas[1].item() == pytest.approx(middle, rel=1e-6)
    assert between.timesteps[1].item() == pytest.approx(1000 * CHAIN.t_of_lam(-math.log(middle)) - 1, rel=1e-6)
    labelled = DiffusersScheduler("DPM++ 2M Karras", ddim())
    assert labelled.config.grid == "karras"
    assert labelled.config["solver"] == "dpmpp_2m"
    x = start()
    assert scheduler.scale_model_input(x, 999) is x
    out = scheduler.step(network(x, torch.tensor([999.0])), scheduler.timesteps[0], x)
    node = CHAIN(1.0)
    expected = (x - node.sigma * network(x, torch.tensor([999.0]))) / node.alpha
    assert gap(out.pred_original_sample, expected) < 1e-12
    assert scheduler.step_index == 1


def test_runs_leave_nothing_behind():
    scheduler = DiffusersScheduler("dpmpp_2m_sde", ddim(), "trailing")
    scheduler.set_timesteps(9)
    once = loop(scheduler, start(), seeded())
    assert torch.equal(loop(scheduler, start(), seeded()), once)
    assert (
        gap(
            loop(scheduler, start((5, 2)), seeded()),
            solved(denoiser(), "dpmpp_2m_sde", TRAILING, start((5, 2)), seeded()),
        )
        < 1e-10
    )
    for t in scheduler.timesteps[:4]:  # a loop that is broken off
        scheduler.step(start(), t, start(), generator=seeded())
    assert torch.equal(loop(scheduler, start(), seeded()), once)
    scheduler.step(start(), scheduler.timesteps[0], start(), generator=seeded())
    scheduler.set_begin_index(2)
    scheduler.set_timesteps(4)
    assert (scheduler.step_index, scheduler.begin_index) == (None, None)
    shorter = solved(denoiser(), "dpmpp_2m_sde", solvers.grid("trailing", CHAIN, 4), start(), seeded())
    assert gap(loop(scheduler, start(), seeded()), shorter) < 1e-10


def test_a_copy_begins_anew():
    scheduler = DiffusersScheduler("dpmpp_2m", ddim(), "trailing")
    scheduler.set_timesteps(9)
    once = loop(scheduler, start())
    scheduler.step(start(), scheduler.timesteps[0], start())
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert twin.step_index is None
        with pytest.raises(InputError, match=r"copied in the middle of a run, at entry 1 \(888\) of timesteps"):
            copy.deepcopy(twin).step(start(), twin.timesteps[1], start())
        assert torch.equal(loop(twin, start()), once)
        twin.step(start(), twin.timesteps[3], start())  # as image-to-image begins
        assert twin.step_index == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", ["dpmpp_2m", "heun", "res_2m", "rk4", "uni_pc"])
def test_loops_that_write_into_their_own_tensors(spec, dtype):
    scheduler = DiffusersScheduler(spec, ddim(), "trailing")
    scheduler.set_timesteps(9)
    plain = loop(scheduler, start(dtype=dtype))
    latents, out = start(dtype=dtype), torch.empty_like(start(dtype=dtype))
    for t in scheduler.timesteps:  # one buffer for the states and one for the network's answers
        out.copy_(network(latents, t.expand(2)))
        latents.copy_(scheduler.step(out, t, latents).prev_sample)
    assert torch.equal(latents, plain)
    x = start(dtype=dtype)
    for t in scheduler.timesteps:  # the state that was returned, once it is done with
        following = scheduler.step(network(x, t.expand(2)), t, x).prev_sample
        x.fill_(torch.nan)
        x = following
    assert torch.equal(x, plain)


def test_numbers_and_other_tensors_of_the_same_value_are_timesteps_too():
    scheduler = DiffusersScheduler("heun", ddim(), "karras")
    scheduler.set_timesteps(5)
    once = loop(scheduler, start())
    for form in (float, torch.tensor, lambda t: torch.full((2,), t)):
        x = start()
        for t in scheduler.timesteps.tolist():
            x = scheduler.step(network(x, torch.tensor([t])), form(t), x, return_dict=False)[0]
        assert torch.equal(x, once)


def test_generators():
    x = start(dtype=torch.float32)
    scheduler = DiffusersScheduler("ddpm", ddim(), "trailing")
    scheduler.set_timesteps(9)
    listed = loop(scheduler, x, [seeded(5), seeded(6)])
    for i in (0, 1):
        alone = loop(scheduler, x[i : i + 1], seeded(5 + i))
        assert gap(listed[i : i + 1], alone) < 1e-5  # one sample's own generator gives it its own noise
    torch.manual_seed(3)
    unseeded = loop(scheduler, x)
    torch.manual_seed(3)
    assert torch.equal(loop(scheduler, x), unseeded)


@pytest.mark.parametrize("spec", [*REQUIRED, "churn(heun, s_churn=40)", "dpm_solver_3"])
@pytest.mark.parametrize("told", [True, False])
def test_a_loop_that_begins_part_way(spec, told):
    scheduler = DiffusersScheduler(spec, ddim(), "trailing")
    scheduler.set_timesteps(9)
    begin = 4 * scheduler.order
    if told:
        scheduler.set_begin_index(begin)
    x0, eps = start(), start().flip(0)
    x = scheduler.add_noise(x0, eps, scheduler.timesteps[begin : begin + 1])
    if "churn" in spec:  # begins where the loop begins: at the churned level, without a first draw of its own
        program = solvers.trace(spec, TRAILING[4:], CHAIN, "eps")
        (node, *_) = [program.nodes[i.node] for i in program.instructions if hasattr(i, "x")]
        assert node.ratio > TRAILING[4].ratio
        assert gap(x, node.alpha * x0 + node.sigma * eps) < 1e-12
        ends = []
        for seed in (1, 1, 2):
            ends.append(loop(scheduler, x, seeded(seed), begin))
        assert torch.equal(ends[0], ends[1])
        assert gap(ends[0], ends[2]) > 1e-2
        return
    node = TRAILING[4]
    assert gap(x, node.alpha * x0 + node.sigma * eps) < 1e-12
    ours = solved(denoiser(), spec, TRAILING[4:], x, seeded())
    for _ in range(2):
        assert gap(loop(scheduler, x, seeded(), begin), ours) < 1e-10


def test_what_cannot_begin_part_way():
    scheduler = DiffusersScheduler("pndm", ddim(), "trailing")
    scheduler.set_timesteps(9)
    with pytest.raises(InputError, match="pndm cannot begin at entry 5 of timesteps"):
        loop(scheduler, start(), begin=5)
    heun = DiffusersScheduler("heun", ddim(), "trailing")
    heun.set_timesteps(9)
    with pytest.raises(InputError, match="heun cannot begin at entry 3 of timesteps"):
        loop(heun, start(), begin=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", ["dpmpp_2m", "uni_pc", "ddpm", "res_2m"])
def test_a_loop_that_blends(spec, dtype):
    mask = torch.arange(4) < 2

    def blend(x, node=None):
        return torch.where(mask, torch.full_like(x, 0.25), x)

    def in_place(x):
        x[..., :2] = 0.25
        return x

    scheduler = DiffusersScheduler(spec, ddim(), "trailing")
    scheduler.set_timesteps(9)
    ours = solved(denoiser(), spec, TRAILING, start(), seeded(), [blend])
    plain = loop(scheduler, start(), seeded())
    assert gap(plain[..., 2:], ours[..., 2:]) > 1e-2  # the blending is felt by the rest
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 0.2}[dtype]
    ends = [loop(scheduler, start().to(dtype), seeded(), blend=one) for one in (blend, in_place)]
    assert torch.equal(ends[0], ends[1])
    if not solvers.make(spec).stochastic or dtype == torch.float64:  # draws in float32 are others
        assert gap(ends[0], ours) < tolerance
    with torch.inference_mode():
        assert torch.equal(loop(scheduler, start().to(dtype), seeded(), blend=in_place), ends[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", REQUIRED)
def test_half_precision(spec, dtype):
    scheduler = DiffusersScheduler(spec, ddim(), "trailing")
    scheduler.set_timesteps(30)

    def scaled(x, label):  # exact in 16 bits but for one rounding of its input: what is left is the state's own
        return 0.5 * x

    x = start(dtype=torch.float32).to(dtype)
    narrow, wide = (loop(scheduler, y, seeded(), denoise=scaled) for y in (x, x.float()))
    assert narrow.dtype == dtype
    unit = torch.finfo(dtype).eps / 2
    # every evaluation sees a rounding of its own, of which eps = 0.5 x feels half: their sum is one of the whole change
    assert gap(narrow, wide) < 8 * unit
    zero = [loop(scheduler, y, seeded(), denoise=lambda x, label: 0 * x) for y in (x, x.float())]
    assert gap(*zero) < unit  # of 30 steps, one rounding: that of what is returned


def test_clipping():
    scheduler = DiffusersScheduler("dpmpp_2m", diffusers.DDPMScheduler(clip_sample_range=0.7), "trailing")
    scheduler.set_timesteps(9)

    class Clipped:
        sde = CHAIN

        def predict(self, x, node):
            x0 = denoiser().predict(x, node).x0.clamp(-0.7, 0.7)
            return solvers.Prediction(x0, (x - node.alpha * x0) / node.sigma)

    ours = solved(Clipped(), "dpmpp_2m", TRAILING, start())
    assert ours.abs().max() == pytest.approx(0.7)
    assert gap(loop(scheduler, start()), ours) < 1e-10


def test_noise_is_added_where_the_labels_say():
    scheduler = DiffusersScheduler("heun", ddim())
    x0, eps = start(), start().flip(0)
    for labels in (torch.tensor([250, 999]), torch.tensor([0])):
        node = CHAIN((labels + 1).double() / 1000).like(x0)
        assert gap(scheduler.add_noise(x0, eps, labels), node.alpha * x0 + node.sigma * eps) < 1e-12
    half = scheduler.add_noise(x0.bfloat16(), eps.bfloat16(), torch.tensor([250]))
    assert half.dtype == torch.bfloat16
    assert gap(half, scheduler.add_noise(x0.bfloat16().double(), eps.bfloat16().double(), torch.tensor([250]))) < 2**-8
    flow = DiffusersScheduler("heun", diffusers.FlowMatchEulerDiscreteScheduler())
    assert gap(flow.scale_noise(x0, torch.tensor([400.0]), eps), 0.6 * x0 + 0.4 * eps) < 1e-12
    with pytest.raises(InputError, match=r"timestep 1200 is outside \[0, 999\]"):
        scheduler.add_noise(x0, eps, torch.tensor([1200]))


def test_save_and_load(tmp_path):
    sources = [
        ddim(rescale_betas_zero_snr=True),
        diffusers.DDPMScheduler(trained_betas=[0.01 + 0.001 * i for i in range(100)], clip_sample=False),
        "cosine(offset=0.01)",
        diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
    ]
    for source in sources:
        for grid in (None, "logsnr(end=zero)"):
            scheduler = DiffusersScheduler("dpmpp_2m(variant=heun)", source, grid)
            scheduler.save_pretrained(tmp_path)
            saved = json.loads((tmp_path / "scheduler_config.json").read_text())
            assert saved["solver"] == "dpmpp_2m(variant=heun)"
            again = DiffusersScheduler.from_pretrained(tmp_path)
            assert dict(again.config) == {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
            ends = []
            for one in (scheduler, again, DiffusersScheduler.from_config(scheduler.config)):
                one.set_timesteps(6)
                ends.append(loop(one, start()))
            assert torch.equal(ends[0], ends[1])
            assert torch.equal(ends[0], ends[2])


def test_between_classes():
    euler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    ours = DiffusersScheduler.from_config(euler.config, solver="DPM++ 2M Karras")
    assert (ours.config.solver, ours.config.grid) == ("dpmpp_2m", "karras")
    back = diffusers.EulerDiscreteScheduler.from_config(ours.config)
    assert torch.equal(back.alphas_cumprod, euler.alphas_cumprod)
    other = DiffusersScheduler.from_config(ours.config, solver="heun", grid="trailing", prediction_type="v_prediction")
    assert (str(other._solver), other.config.grid, other.config.prediction_type) == ("heun", "trailing", "v_prediction")
    assert DiffusersScheduler.from_config(ours.config, beta_end=0.02).config.beta_end == 0.02


def test_bad_steps():
    scheduler = DiffusersScheduler("ddim", ddim(), "trailing")
    x = start()
    for bad, message in (
        ({}, "pass num_inference_steps, sigmas or timesteps"),
        ({"num_inference_steps": 0}, "positive integer"),
        ({"num_inference_steps": 2000}, "2000 steps, but the network has 1000"),
        ({"sigmas": [1.0], "timesteps": [5]}, "not both"),
        ({"sigmas": []}, "sigmas must be a list of finite numbers"),
        ({"sigmas": "abc"}, "sigmas must be a list of finite numbers"),
        ({"sigmas": [None]}, "sigmas must be a list of finite numbers"),
        ({"timesteps": 5}, "timesteps must be a list of finite numbers"),
        ({"sigmas": [500.0, 1.0]}, r"sigma=500 is outside \[0.0100005, 157.4"),
        ({"sigmas": [1.0, 5.0]}, "nodes 0 and 1"),
        ({"timesteps": [1999, 1]}, r"timestep 1999 is outside \[0, 999\]"),
        ({"timesteps": [9, 1], "num_inference_steps": 3}, "got 2 timesteps for num_inference_steps=3"),
    ):
        with pytest.raises(InputError, match=message):
            scheduler.set_timesteps(**bad)
    scheduler.set_timesteps(10)
    first, second, third = scheduler.timesteps[:3]
    for call, message in (
        ((x[:, :2], first, x), r"model_output is \(2, 2, 4\) for samples \(2, 3, 4\)"),
        ((x, 998, x), "the timestep 998 is not in timesteps"),
        ((x, torch.tensor([999, 899]), x), "one timestep for all samples"),
        ((x, scheduler.timesteps[:2], x), r"one timestep for all samples, got \[999, 899\]"),
        ((x, None, x), "timestep must be an entry of timesteps, got None"),
        ((x, "a", x), "timestep must be an entry of timesteps, got 'a'"),
        ((x.long(), first, x.long()), "sample must be a floating-point tensor, got torch.int64"),
        ((x, first, None), "sample must be a floating-point tensor, got NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            scheduler.step(*call)
    with pytest.raises(InputError, match=r"step\(eta=0.5\) is not supported by ddim"):
        scheduler.step(x, first, x, eta=0.5)
    scheduler.step(x, first, x, eta=0.0, use_clipped_model_output=None, s_noise=1.0)
    with pytest.raises(
        InputError, match=r"out of order: step expects entry 1 \(899\) of timesteps, got entry 2 \(799\);"
    ):
        scheduler.step(x, third, x)
    with pytest.raises(InputError, match=r"expects entry 1 \(899\) of timesteps, got 5;"):
        scheduler.step(x, torch.full((2,), 5), x)
    with pytest.raises(InputError, match=r"sample is \(1, 3, 4\) in a run of \(2, 3, 4\)"):
        scheduler.step(x[:1], second, x[:1])
    scheduler.step(x, second, x)
    heun = DiffusersScheduler("heun", ddim(), "trailing")
    heun.set_timesteps(3)
    heun.step(x, heun.timesteps[0], x)
    with pytest.raises(InputError, match=r"expects entry 1 \(666\) of timesteps, got entry 2 \(666\)"):
        heun.step(x, heun.timesteps[2], x)

"""`diffusion-jax evaluate`: closed forms of bits/dim, results that batch and devices leave alone, what is recorded."""

import contextlib
import json

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image
from random_workdir import digits, save_state

from diffusion_jax import experiment
from diffusion_jax.cli.main import main
from diffusion_jax.config import base
from diffusion_jax.evals import moments, scores
from diffusion_jax.models import likelihood
from diffusion_jax.runs.workdir.paths import Workdir
from diffusion_jax.train import sharding
from diffusion_jax.train.arrays import replicated_like
from diffusion_jax.train.checkpoint import Checkpoints

SAMPLES = "--metrics=fd,kid,precision_recall,inception_score,memorisation"


def write(root, *, task="diffusion", schedule="cosine(steps=50)", scale=0.1):
    """A workdir with a checkpoint whose parameters are normal with this scale; of an autoencoder, no checkpoint."""
    config = digits(task)
    config.schedule = schedule
    config.autoencoder.update(channels=8, multipliers=(1,), blocks=1, groups=4)
    if task == "autoencoder":
        Workdir(root).write_config(config)
    else:
        save_state(Workdir(root), config, scale=scale, same_average=True)
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """model and classifier, of random parameters; gaussian, the exact model of N(0, I), on a chain and continuous."""
    home = tmp_path_factory.mktemp("evaluate")
    write(home / "model")
    write(home / "classifier", task="classifier", scale=0.5)
    write(home / "gaussian", scale=0.0)
    write(home / "continuous", schedule="vp", scale=0.0)
    write(home / "autoencoder", task="autoencoder")
    return home


def evaluate(workdir, out, *flags):
    assert main(["evaluate", f"--workdir={workdir}", f"--out={out}", *flags]) == 0
    return json.loads(out.read_text())


def images(num, entry="x"):
    """The first num digits as the command takes them, [N, 8, 8, 1] in [-1, 1]; or another of their entries."""
    config = base()
    config.data.shape = (8, 8, 1)
    config.train.batch_size = num
    with contextlib.closing(experiment.batches(config, experiment.source(config))) as batches:
        return next(batches)[entry].astype(np.float64)


def test_the_ode_of_an_exact_model_and_its_decoder_are_those_of_a_normal(home, tmp_path):
    """v = 0 is exact for data of N(0, I): x_start is normal, and x0 about alpha x_start with variance sigma^2."""
    entry = evaluate(home / "gaussian", tmp_path / "a.json", "--metrics=bits_per_dim", "--method=ode", "--num=16")
    entry = entry["metrics"]["bits_per_dim"]
    schedule, x0 = experiment.schedule("cosine(steps=50)"), images(16)
    alpha, sigma = (float(a) for a in schedule.level(np.float32(0.02)))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(images(16, "index").astype(int))
    eps = np.asarray(likelihood._normal(likelihood._split(keys, 0, 3)[0], x0), np.float64)
    x = alpha * x0 + sigma * eps
    flow = (0.5 * (x**2 - eps**2) / np.log(2) - np.log2(sigma)).mean(axis=(1, 2, 3))
    logits = -0.5 * ((2 * np.arange(256) / 255 - 1 - alpha * x[..., None]) / sigma) ** 2
    log_p = -0.5 * ((x0 - alpha * x) / sigma) ** 2 - scipy.special.logsumexp(logits, axis=-1)
    decoder = -log_p.mean(axis=(1, 2, 3)) / np.log(2)
    bits = flow + decoder
    np.testing.assert_allclose(entry["value"], bits.mean(), atol=1e-3)
    assert entry["parts"] == pytest.approx({"flow": flow.mean(), "decoder": decoder.mean()}, abs=1e-3)
    np.testing.assert_allclose(entry["standard_error"], bits.std(ddof=1) / 4, rtol=0.02)
    assert set(entry["standard_errors"]) == {"flow", "decoder"}
    assert entry["label"] == "bits/dim (probability-flow ODE)"
    assert (entry["how"]["n"], entry["how"]["steps"]) == (16, "adaptive")
    assert entry["how"]["first_noise_level"] == pytest.approx(sigma / alpha, rel=1e-3)


def test_the_bound_of_an_exact_model_is_its_closed_form(home, tmp_path):
    """Each term's mean over the noise: E (x0 - alpha x)^2 = sigma^4 x0^2 + alpha^2 sigma^2 for x0^ = alpha x."""
    entry = evaluate(home / "gaussian", tmp_path / "a.json", "--metrics=bits_per_dim", "--num=32")
    entry = entry["metrics"]["bits_per_dim"]
    schedule = experiment.schedule("cosine(steps=50)")
    alpha, sigma = (np.asarray(a, np.float64) for a in schedule.level(np.arange(51) / np.float32(50)))
    x0, diffusion = images(32), 0.0
    for t in range(2, 51):
        beta = 1 - (alpha[t] / alpha[t - 1]) ** 2
        ratio = alpha[t - 1] * beta / sigma[t] ** 2  # of x0 in the posterior's mean
        variance = sigma[t - 1] ** 2 * beta / sigma[t] ** 2
        error = sigma[t] ** 4 * x0**2 + (alpha[t] * sigma[t]) ** 2
        diffusion += (0.5 * ratio**2 / variance * error).mean() / np.log(2)
    np.testing.assert_allclose(entry["parts"]["diffusion"], diffusion, rtol=0.02)
    prior = 0.5 * (alpha[-1] ** 2 * x0**2 + sigma[-1] ** 2 - 1 - 2 * np.log(sigma[-1])).mean() / np.log(2)
    np.testing.assert_allclose(entry["parts"]["prior"], prior, rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(entry["value"], sum(entry["parts"].values()), rtol=1e-5)


def test_the_bound_in_continuous_time_is_its_integral(home, tmp_path):
    """-1/2 of the integral of logsnr' E (eps - sigma x)^2, that is alpha^4 + (alpha sigma x0)^2, from half a bin on."""
    flags = ("--metrics=bits_per_dim", "--num=32", "--likelihood_steps=32")
    entry = evaluate(home / "continuous", tmp_path / "a.json", *flags)["metrics"]["bits_per_dim"]
    schedule = experiment.schedule("vp")
    logsnr = np.linspace(2 * np.log(255), float(schedule.logsnr(1.0)), 4001)
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-logsnr)), 1 / np.sqrt(1 + np.exp(logsnr))
    error = alpha**4 + (alpha * sigma) ** 2 * (images(32) ** 2).mean()
    expected = -0.5 * np.trapezoid(error, 2 * np.log(alpha / sigma)) / np.log(2)
    np.testing.assert_allclose(entry["parts"]["diffusion"], expected, rtol=0.01)
    assert entry["standard_error"] < 0.1
    assert entry["how"]["steps"] == 32


@pytest.fixture(scope="module")
def many(home, tmp_path_factory):
    """The random model's results, of batches of 8 on 8 devices and of one batch on one; the workdir's alone first."""
    folder = tmp_path_factory.mktemp("results")
    flags = ("--num=20", f"--features={home}/classifier", "--kid_size=10", "--seed=3")
    metrics = f"{SAMPLES},bits_per_dim"
    first = evaluate(home / "model", folder / "eight.json", metrics, *flags, "--batch=8")
    mesh = sharding.mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "mesh", lambda **options: mesh(**{"devices": jax.devices()[:1]} | options))
        second = evaluate(home / "model", folder / "one.json", metrics, *flags, "--batch=20")
    return folder, first, second


def test_neither_batch_nor_devices_change_a_result(many):
    _, first, second = many
    assert len(first["metrics"]) == 8
    for name, entry in first["metrics"].items():
        np.testing.assert_allclose(entry["value"], second["metrics"][name]["value"], rtol=1e-3, err_msg=name)
        assert entry["how"] == second["metrics"][name]["how"]
    a, b = (result["metrics"]["bits_per_dim"]["parts"] for result in (first, second))
    assert a == pytest.approx(b, rel=1e-5)


def test_bits_per_dim_tells_the_model_each_image_s_own_class_and_does_not_guide(home, many, tmp_path, monkeypatch):
    flags = ("--metrics=bits_per_dim", "--num=20", "--seed=3", "--batch=8", "--guidance=3")
    first = many[1]["metrics"]["bits_per_dim"]["value"]
    again = evaluate(home / "model", tmp_path / "a.json", *flags)
    np.testing.assert_allclose(again["metrics"]["bits_per_dim"]["value"], first, rtol=1e-6)
    wrong = lambda model, batch: {"label": (batch["label"] + 1) % 10}  # noqa: E731
    monkeypatch.setattr("diffusion_jax.runs.evaluate.likelihood.own_conditions", wrong)
    other = evaluate(home / "model", tmp_path / "b.json", *flags)
    assert abs(other["metrics"]["bits_per_dim"]["value"] / first - 1) > 1e-5


def test_the_distance_is_that_of_the_samples_that_sample_draws(home, many, tmp_path):
    out = tmp_path / "samples"
    assert main(["sample", f"--workdir={home}/model", f"--out={out}", "--num=20", "--seed=3"]) == 0
    config = Workdir(home / "classifier").read_config()
    with contextlib.closing(Checkpoints(home / "classifier/checkpoints", read_only=True)) as checkpoints:
        mesh = sharding.mesh(devices=jax.devices()[:1])
        params = checkpoints.restore_tree(
            "ema", replicated_like(experiment.classifier.trainee(config).abstract, mesh), 7
        )
    net = experiment.classifier.network(config)

    @jax.jit
    def pooled(x):
        t = experiment.schedule(config.schedule).conditioning(np.zeros(len(x), np.float32))
        aside = net.apply({"params": params}, x, t, mutable=["intermediates"])[1]
        return aside["intermediates"]["attention_pool"]["pooled"][0]

    drawn = np.load(out / "samples.npz")["images"] / np.float32(127.5) - 1
    a, b = (np.asarray(pooled(np.float32(x)), np.float64) for x in (drawn, images(20)))
    expected = scores.frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    np.testing.assert_allclose(many[1]["metrics"]["fd"]["value"], expected, rtol=1e-3)


def test_statistics_kept_in_a_file_give_the_distance_of_the_images(home, many, tmp_path, capsys):
    """The same number as from the images themselves; of other features or another size they are refused."""
    (tmp_path / "digits.py").write_text("from diffusion_jax.config import base as get_config\n")
    features = f"--features={home}/classifier"
    kept = tmp_path / "real.npz"
    made = ["evaluate", "reference", f"--config={tmp_path}/digits.py", features, "--num=20", "--batch=8"]
    assert main([*made, f"--out={kept}"]) == 0
    flags = ("--metrics=fd", "--num=20", "--seed=3", features, "--batch=8", f"--reference={kept}")
    entry = evaluate(home / "model", tmp_path / "r.json", *flags)["metrics"]["fd"]
    np.testing.assert_allclose(entry["value"], many[1]["metrics"]["fd"]["value"], rtol=1e-5)
    assert entry["how"]["real"] == {"statistics_sha256": moments.sha256(kept), "n": 20}
    said = json.loads((tmp_path / "real.json").read_text())
    assert said["real"] == many[1]["metrics"]["fd"]["how"]["real"]

    others = {
        "of images [4, 4, 1]": {"shape": [4, 4, 1]},
        "of other weights": {"features": {**entry["features"], "sha256": "0"}},
    }
    for message, other in others.items():
        (tmp_path / "real.json").write_text(json.dumps(said | other))
        assert main(["evaluate", f"--workdir={home}/model", f"--out={tmp_path}/n.json", *flags]) == 2
        assert message in capsys.readouterr().err


def test_a_result_says_all_that_it_takes_to_repeat_it(home, many):
    _, first, _ = many
    assert first["subject"] | {"sampling": None} == {
        "workdir": f"{home}/model",
        "checkpoint_step": 7,
        "checkpoint_sha256": moments.sha256(home / "model/checkpoints/7/manifest.json"),
        "guided_by": {"classifier": None, "classifier_scale": 1.0, "weak": None, "weak_step": None},
        "weights": "ema",
        "seed": 3,
        "seeds": [3, 22],
        "sampling": None,
    }
    sampling = first["subject"]["sampling"]
    assert (sampling["sampler"], sampling["steps"], sampling["guidance"]) == ("ddim", 3, 1.0)
    fd = first["metrics"]["fd"]
    assert fd["label"] == f"FD (features: classifier {home}/classifier, step 7)"
    assert len(fd["how"]["features"]["sha256"]) == len(fd["how"]["real"]["pixels_sha256"]) == 64
    assert (fd["how"]["n"], fd["how"]["shape"], fd["how"]["real"]["split"]) == (20, [8, 8, 1], "train")
    assert (first["metrics"]["kid"]["std"] > 0, first["metrics"]["kid"]["how"]["size"]) == (True, 10)
    assert first["versions"]["jax"] == jax.__version__


def test_a_result_without_out_lies_in_the_workdir_under_a_name_of_its_own(home, capsys):
    """The name is the step and the result's own SHA-256."""
    flags = ["evaluate", f"--workdir={home}/gaussian", "--metrics=bits_per_dim", "--num=8", "--likelihood_steps=2"]
    assert main(flags) == 0
    (file,) = (home / "gaussian/evaluations").iterdir()
    assert file.name == f"00000007-{moments.sha256(file)[:8]}.json"
    printed = capsys.readouterr().out
    assert str(file) in printed
    assert "bits/dim (variational bound): " in printed


def test_compare_shows_what_differs_of_results_measured_alike(many, tmp_path, capsys):
    folder, first, _ = many
    other = json.loads(json.dumps(first))
    other["subject"]["sampling"]["guidance"] = 2.0
    other["metrics"]["fd"]["value"] += 1.5
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert main(["evaluate", "compare", f"--a={folder}/eight.json", f"--b={tmp_path}/other.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("fd ")] == ["+1.5"]
    assert "subject sampling.guidance 1.0 / 2.0" in lines


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("how.n", 500, "fd of {a} and of {b} cannot be compared (n 20 / 500)"),
        ("how.features.sha256", "0", "features.sha256"),
        ("how.real.pixels_sha256", "0", "real.pixels_sha256"),
        ("how.told.labels", ["3"], "told.labels [] / ['3']"),
    ],
)
def test_compare_refuses_unlike_results_and_says_what_differs(many, tmp_path, capsys, path, value, message):
    folder, first, _ = many
    other = json.loads(json.dumps(first))
    entry = other["metrics"]["fd"]
    *keys, last = path.split(".")
    for key in keys:
        entry = entry[key]
    entry[last] = value
    a, b = folder / "eight.json", tmp_path / "other.json"
    b.write_text(json.dumps(other))
    assert main(["evaluate", "compare", f"--a={a}", f"--b={b}"]) == 2
    captured = capsys.readouterr()
    assert message.format(a=a, b=b) in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    ("workdir", "flags", "message"),
    [
        ("model", ["--metrics=fdd"], "unknown metric 'fdd'; choose from bits_per_dim, fd, sfd, kid"),
        ("model", ["--metrics=fid"], "give --metrics=fd --features=inception"),
        ("model", [], "give --metrics"),
        (
            "model",
            ["--metrics=fd"],
            "fd needs features: give --features=inception --weights=FILE.safetensors, --features=WORKDIR",
        ),
        ("model", ["--metrics=kid", "--num=20", "--features=classifier"], "takes 1000 images, and --num is 20"),
        ("model", ["--metrics=fd", "--features=inception"], "needs --weights=FILE.safetensors"),
        ("model", ["--metrics=fd", "--features=inception", "--weights=no.safetensors"], "no file no.safetensors"),
        ("model", ["--metrics=fd", "--features=inception", "--weights=a.pth"], "a pickle such as .pth is not read"),
        (
            "model",
            ["--metrics=fd", "--features=model"],
            "--features is inception, clip, values or the workdir of a classifier",
        ),
        ("model", ["--metrics=fd", "--features=nowhere"], "nowhere is not a workdir"),
        ("model", ["--metrics=bits_per_dim", "--num=1798"], "has 1,797 images, and --num is 1,798"),
        ("model", ["--metrics=bits_per_dim", "--method=exact"], "by method bound or ode; got 'exact'"),
        ("model", ["--metrics=bits_per_dim", "--features=classifier"], "--features is of fd, sfd, kid"),
        (
            "model",
            ["--metrics=sfd", "--features=classifier"],
            "sfd takes spatial features, which --features=inception has",
        ),
        (
            "model",
            ["--metrics=psnr"],
            "psnr compares an image with its original: it is of an autoencoder, or of a super-",
        ),
        ("model", ["--metrics=clip_score"], "clip_score needs --clip=FOLDER, a CLIP model"),
        ("model", ["--metrics=clip_score", "--clip=nowhere"], "clip_score compares an image with its caption"),
        ("model", ["--metrics=fd", "--features=clip"], "needs --weights=FOLDER, a CLIP model"),
        ("model", ["--metrics=fd", "--features=clip", "--weights=model"], "model holds a model of type None"),
        ("model", ["--metrics=fd", "--features=classifier", "--real=-1"], "--real is at least 0; got -1"),
        ("model", ["--metrics=fd", "--features=classifier", "--ema=0.1"], "takes snapshots, and model has none"),
        ("model", ["--metrics=fd", "--features=classifier", "--ema=1"], "is above 0 and at most 0.2887; got 1"),
        ("model", ["--metrics=fd", "--features=classifier", "--ema=long"], "--ema is true, false or a length"),
        ("model", ["--metrics=bits_per_dim", "--save_seconds=-1"], "--save_seconds is at least 0"),
        ("model", ["--metrics=bits_per_dim", "--out=result.txt"], "is to be a new .json file"),
        ("autoencoder", ["--metrics=psnr"], "no checkpoint in autoencoder/checkpoints"),
        ("autoencoder", ["--metrics=bits_per_dim"], "bits_per_dim is of diffusion models"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(home, capsys, monkeypatch, workdir, flags, message):
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*.json"))
    assert main(["evaluate", f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(home.rglob("*.json")) == before


def test_suspected_copies_are_shown_beside_their_nearest_images(many):
    folder, first, _ = many
    with Image.open(folder / "eight.memorisation.png") as picture:
        width, height = picture.size
    assert width > 5 * 64
    assert height > 16 * 64
    assert 0 <= first["metrics"]["copied"]["value"] <= 1
    assert (
        first["metrics"]["copied"]["label"] == f"copied (features: {first['metrics']['fd']['features']['extractor']})"
    )


def test_more_real_images_than_samples_may_be_compared_with(home, tmp_path):
    flags = ("--metrics=fd", "--num=20", "--seed=3", f"--features={home}/classifier", "--batch=8", "--real=40")
    entry = evaluate(home / "model", tmp_path / "a.json", *flags)["metrics"]["fd"]
    assert (entry["how"]["n"], entry["how"]["real"]["n"]) == (20, 40)


@pytest.fixture(scope="module")
def mapped(home, tmp_path_factory):
    """A heatmap of the random model over guidance and two averages, the second time from its cells; what was said."""
    out = tmp_path_factory.mktemp("heatmap") / "out"
    flags = [
        "evaluate",
        "heatmap",
        f"--workdir={home}/model",
        "--metrics=fd",
        "--num=20",
        "--seed=3",
        f"--features={home}/classifier",
        "--over=ema=true,false",
        "--over=guidance=1,3",
        f"--out={out}",
    ]
    assert main(flags) == 0
    return out, flags


def test_a_heatmap_has_what_evaluate_gives_in_every_cell(home, many, mapped):
    out, _ = mapped
    found = json.loads((out / "heatmap.json").read_text())
    assert found["axes"] == [{"name": "ema", "values": [True, False]}, {"name": "guidance", "values": [1.0, 3.0]}]
    values = [cell["metrics"]["fd"]["value"] for cell in found["cells"]]
    np.testing.assert_allclose(values[0], many[1]["metrics"]["fd"]["value"], rtol=1e-3)
    assert values[0] != values[1]
    assert values[0] == pytest.approx(values[2], rel=1e-3)  # here the average equals the parameters
    assert found["best"]["fd"]["value"] == min(values)
    result = json.loads((out / found["cells"][3]["file"]).read_text())
    assert (result["subject"]["sampling"]["guidance"], result["subject"]["weights"]) == (3.0, "params")
    with Image.open(out / "fd.png") as picture:
        assert min(picture.size) > 100


def test_a_heatmap_goes_on_cell_by_cell(mapped, capsys):
    """Only the cell that lacks is measured, and the table is what it was."""
    out, flags = mapped
    before = json.loads((out / "heatmap.json").read_text())
    (out / before["cells"][1]["file"]).unlink()
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "2 of 4: ema ema, guidance 3" in said
    assert said.count(" of 4: ") == 1
    after = json.loads((out / "heatmap.json").read_text())
    assert after["cells"][1]["metrics"]["fd"]["value"] == pytest.approx(before["cells"][1]["metrics"]["fd"]["value"])


@pytest.mark.parametrize(
    ("workdir", "over", "message"),
    [
        ("model", [], "--over is given for 1 to 3 axes, each once; got none"),
        ("model", ["guidance"], "--over is AXIS=VALUE,VALUE,... with an axis of step, ema, guidance"),
        ("model", ["seed=1,2"], "--over is AXIS=VALUE,VALUE,... with an axis of step, ema, guidance"),
        ("model", ["steps=1,2.5"], "the values of steps are not all of type int"),
        ("model", ["guidance=1,1.0"], "has a value twice"),
        ("model", ["guidance=1,nan"], "--guidance is a finite number; got nan"),
        ("model", ["step=7,8"], "no checkpoint of step 8 in model/checkpoints; there are 7"),
        ("model", ["step=7", "step=all"], "1 to 3 axes, each once"),
        ("autoencoder", ["step=all"], "no checkpoint in autoencoder/checkpoints"),
        ("nowhere", ["step=all"], "nowhere is not a workdir"),
    ],
)
def test_a_heatmap_that_cannot_be_is_one_sentence(home, capsys, monkeypatch, workdir, over, message):
    monkeypatch.chdir(home)
    flags = [f"--over={axis}" for axis in over]
    command = ["evaluate", "heatmap", f"--workdir={workdir}", "--metrics=fd", "--features=classifier", "--out=hm"]
    assert main([*command, "--num=20", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (home / "hm").exists()

"""The torch side of `accelerator.py`: diffusers' models of the same networks, compiled, channels last, in bfloat16."""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel, UNet2DModel

if TYPE_CHECKING:
    from accelerator_cases import Case


def has_gpu() -> bool:
    return torch.cuda.is_available()


def model(net: Any, channels: int) -> torch.nn.Module:
    """The model of diffusers that computes what net does, with weights of its own."""
    attended = [2**i in net.attention for i in range(len(net.multipliers))]
    widths = tuple(net.channels * m for m in net.multipliers)
    both = dict(
        in_channels=channels,
        out_channels=net.out_channels,
        block_out_channels=widths,
        layers_per_block=net.blocks,
        downsample_padding={"end": 0, "both": 1}[net.padding],
        flip_sin_to_cos=net.sinusoids == "adm",
        freq_shift=0 if net.sinusoids == "adm" else 1,
        norm_eps=net.epsilon,
        norm_num_groups=net.groups,
        resnet_time_scale_shift="scale_shift" if net.scale_shift else "default",
        num_class_embeds=None if net.num_classes is None else net.num_classes + 1,
        dropout=net.dropout,
    )
    if net.text_features is None:
        kind = "Resnet{}sampleBlock2D" if net.resample == "block" else "{}Block2D"
        change = "resnet" if net.resample == "block" else "conv"
        return UNet2DModel(
            **both,
            down_block_types=tuple("AttnDownBlock2D" if a else kind.format("Down") for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else kind.format("Up") for a in reversed(attended)),
            downsample_type=change,
            upsample_type=change,
            attention_head_dim=net.head_channels or None,
            attn_norm_num_groups=net.groups,
        )
    heads = [c // net.head_channels for c in widths] if net.head_channels else [net.heads] * len(widths)
    return UNet2DConditionModel(
        **both,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        cross_attention_dim=net.text_features,
        attention_head_dim=heads,  # its name notwithstanding
        transformer_layers_per_block=net.depth,
        use_linear_projection=net.text_features == 1024,  # as Stable Diffusion 2 has it
    )


def of_torch(case: "Case", budget: float) -> dict[str, Any]:
    """One case; on a CPU, eager."""
    from accelerator import measured

    where = "cuda" if has_gpu() else "cpu"
    inputs = {name: torch.from_numpy(a).to(where) for name, a in case.inputs().items()}
    for name in ("x", "target"):
        inputs[name] = inputs[name].permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    net = model(case.net, case.channels).to(where, memory_format=torch.channels_last)
    if case.steps:  # training keeps float32 parameters, as this package always does
        net = net.to(torch.bfloat16).eval()
    called = torch.compile(net) if where == "cuda" else net
    run = (_sampling if case.steps else _training)(case, net, called, inputs, where)
    if where == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    run()
    seconds = time.perf_counter() - begun
    found = {**dataclasses.asdict(measured(run, budget)), "compile_seconds": seconds}
    return found | {"memory": torch.cuda.max_memory_allocated() if where == "cuda" else None}


def _told(case: "Case", text: Any, label: Any) -> dict[str, Any]:
    if case.tokens:
        return {"encoder_hidden_states": text}
    return {} if label is None else {"class_labels": label}


def _wait(where: str) -> None:
    if where == "cuda":
        torch.cuda.synchronize()


def _training(case: "Case", net: Any, called: Any, inputs: dict[str, Any], where: str) -> Any:
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-4, fused=where == "cuda")
    told = _told(case, inputs.get("text"), inputs.get("label"))

    def run() -> None:
        with torch.autocast(where, torch.bfloat16):
            out = called(inputs["x"], inputs["t"], **told).sample
        loss = torch.nn.functional.mse_loss(out.float(), inputs["target"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _wait(where)

    return run


def _sampling(case: "Case", net: Any, called: Any, inputs: dict[str, Any], where: str) -> Any:
    from accelerator import GUIDANCE

    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    text = torch.cat([inputs["text"], torch.zeros_like(inputs["text"])]).to(torch.bfloat16)

    @torch.inference_mode()
    def run() -> None:
        scheduler.set_timesteps(case.steps, device=where)
        x = inputs["x"].to(torch.bfloat16)
        for t in scheduler.timesteps:
            both = torch.cat([x, x]).to(memory_format=torch.channels_last)
            told, untold = called(both, t, encoder_hidden_states=text).sample.chunk(2)
            x = scheduler.step(untold + GUIDANCE * (told - untold), t, x).prev_sample
        _wait(where)

    return run

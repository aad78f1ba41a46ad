"""The losses, logits and gradients of the published implementations, from full logits and from the objective."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.interchange.intervene import Swap, blocks_read, counterfactual, run
from potstill.interchange.mappings import InterchangeMapping, read_mappings
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import cross_entropy, kl_divergence, logit_mse
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.backbone import backbone_of
from potstill.objectives.interchange import Interchange
from potstill.objectives.language import LanguageObjective

FOLDER = os.environ.get("POTSTILL_PARITY_DIR")
CASES = json.loads((Path(FOLDER) / "causal.json").read_text()) if FOLDER else {}
pytestmark = pytest.mark.skipif(not FOLDER, reason="POTSTILL_PARITY_DIR is not set")


@dataclass
class Case:
    temperature: float
    losses: dict[str, float]
    tensors: dict[str, Tensor]
    teacher: BertForMaskedLM
    student: DistilBertForMaskedLM
    stated: dict

    def mapping(self) -> InterchangeMapping:
        sites = {side: self.stated[f"{side}_sites"] for side in ("teacher", "student")}
        return read_mappings([sites], backbone_of(self.teacher), backbone_of(self.student))[0]

    def swap(self) -> Swap:
        masks = (self.tensors[name] for name in ("interchange_mask", "source_interchange_mask"))
        return Swap(*(mask.flatten().nonzero().squeeze(1) for mask in masks))

    def micro(self) -> MicroBatch:
        base = micro_of(self.tensors["input_ids"], self.tensors["attention_mask"], self.tensors["labels"])
        base.sources = micro_of(self.tensors["source_ids"], self.tensors["source_mask"])
        base.swap = self.swap()
        return base

    def hidden(self, model: torch.nn.Module) -> Tensor:
        ids, mask = self.tensors["input_ids"], self.tensors["attention_mask"]
        return model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state

    def teacher_input(self) -> Tensor:
        return self.teacher.cls.predictions.transform(self.hidden(self.teacher))

    def student_input(self) -> Tensor:
        model = self.student
        transformed = model.activation(model.vocab_transform(self.hidden(model)))
        return model.vocab_layer_norm(transformed)

    def positions(self, masked_only: bool) -> Tensor:
        if masked_only:
            return self.tensors["labels"] != -100
        return self.tensors["attention_mask"].bool()


def micro_of(ids: Tensor, mask: Tensor, labels: Tensor | None = None) -> MicroBatch:
    positions = mask.flatten().nonzero().squeeze(1)
    wanted = torch.full_like(ids, -100) if labels is None else labels
    return MicroBatch(ids, mask, positions, wanted.flatten()[positions], torch.ones_like(positions, dtype=torch.bool))


@pytest.fixture(scope="module", params=sorted(CASES) or ["none"])
def case(request: pytest.FixtureRequest) -> Case:
    stated = CASES[request.param]
    tensors = load_file(Path(FOLDER) / f"causal_{request.param}.safetensors")
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = BertForMaskedLM(BertConfig(**{**stated["teacher"], **off}))
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    student = DistilBertForMaskedLM(DistilBertConfig(**{**stated["student"], **off}))
    for name, model in (("teacher", teacher), ("student", student)):
        weights = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        model.load_state_dict(weights)
        model.eval()
    return Case(stated["temperature"], stated["losses"], tensors, teacher, student, stated)


@torch.no_grad()
def test_base_logits(case):
    kept = case.positions(masked_only=False)
    for name, model, into_head in (
        ("teacher", case.teacher, case.teacher_input()),
        ("student", case.student, case.student_input()),
    ):
        ours, stated = model.get_output_embeddings()(into_head), case.tensors[f"{name}_logits"]
        torch.testing.assert_close(ours[kept], stated[kept], rtol=0, atol=1e-4)


@torch.no_grad()
def test_reference_functions(case):
    student = case.student.get_output_embeddings()(case.student_input())
    teacher = case.teacher.get_output_embeddings()(case.teacher_input())
    ours = {
        "mlm": cross_entropy(student.flatten(0, 1), case.tensors["labels"].flatten()),
        "cos": cosine_distance(
            case.hidden(case.student)[case.positions(False)], case.hidden(case.teacher)[case.positions(False)]
        ),
    }
    for suffix, masked_only in (("", False), ("_masked_only", True)):
        kept = case.positions(masked_only)
        ours[f"ce{suffix}"] = kl_divergence(student[kept], teacher[kept], case.temperature)
        ours[f"mse{suffix}"] = logit_mse(student[kept], teacher[kept])
    assert {k: v.item() for k, v in ours.items()} == pytest.approx({k: case.losses[k] for k in ours}, rel=1e-5)


@pytest.mark.parametrize("masked_only", [False, True])
def test_fused_losses(case, masked_only):
    kept = case.positions(masked_only)
    student, teacher = case.student.get_output_embeddings(), case.teacher.get_output_embeddings()
    labels = case.tensors["labels"][kept]
    counts = {"ce": kept.sum(), "mse": kept.sum(), "nll": (labels != -100).sum()}
    losses = vocabulary_losses(
        case.student_input()[kept],
        student.weight,
        student.bias,
        labels_N=labels,
        teacher_NE=case.teacher_input()[kept],
        teacher_weight_VE=teacher.weight,
        teacher_bias_V=teacher.bias,
        temperature=case.temperature,
        weights={"ce": 1.0, "mse": 1.0, "nll": 1.0},
        denominators=counts,
        chunk_rows=7,
    )
    suffix = "_masked_only" if masked_only else ""
    names = {"ce": f"ce{suffix}", "mse": f"mse{suffix}", "nll": "mlm"}
    ours = {k: (v / counts[k]).item() for k, v in losses.sums.items()}
    assert ours == pytest.approx({k: case.losses[name] for k, name in names.items()}, rel=1e-5)


@torch.no_grad()
def test_counterfactual_logits(case):
    mapping, kept = case.mapping(), case.positions(masked_only=False)
    for name, model in (("teacher", case.teacher), ("student", case.student)):
        backbone, sites = backbone_of(model), getattr(mapping, name)
        base, source = (
            run(
                backbone,
                backbone.embed(case.tensors[ids], case.tensors[mask]),
                {sites[0].block} | blocks_read(sites, "block_input"),
            )
            for ids, mask in (("input_ids", "attention_mask"), ("source_ids", "source_mask"))
        )
        last = counterfactual(backbone, base, source, sites, case.swap(), "block_input")
        ours = torch.nn.functional.linear(backbone.head(last), *backbone.decoder)
        stated = case.tensors[f"{name}_cf_logits"]
        torch.testing.assert_close(ours[kept], stated[kept], rtol=0, atol=1e-4)


def test_objective_with_gradients(case):
    micro, weights = case.micro(), dict.fromkeys(("ce", "mlm", "cos", "causal_ce"), 0.25)
    found = share(case, micro, weights)
    assert {k: v.item() for k, v in found.terms.items()} == pytest.approx(
        {k: case.losses[k] for k in weights}, rel=1e-4
    )
    assert found.loss.item() == pytest.approx(case.stated["total"], rel=1e-4)
    case.student.zero_grad()
    found.loss.backward()
    norms = {name: case.student.get_parameter(name).grad.norm().item() for name in case.stated["grad_norms"]}
    assert norms == pytest.approx(case.stated["grad_norms"], rel=1e-4, abs=1e-6)


def test_further_terms(case):
    found = share(case, case.micro(), {"mse": 1.0, "causal_cos": 1.0})
    assert {k: v.item() for k, v in found.terms.items()} == pytest.approx(
        {k: case.losses[k] for k in ("mse", "causal_cos")}, rel=1e-4
    )


def share(case, micro, weights):
    tokens, labelled = len(micro.positions), int((micro.labels != -100).sum())
    step = StepBatch([micro], tokens, labelled, reached=tokens, reached_labelled=labelled)
    interchange = Interchange((case.mapping(),), "block_input")
    objective = LanguageObjective("masked", weights, case.temperature, interchange=interchange)
    return objective(backbone_of(case.student), backbone_of(case.teacher), micro, objective.denominators(step))

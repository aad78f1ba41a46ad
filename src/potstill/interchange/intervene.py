"""The counterfactual run: a base run that continues from swapped states.

A swap at block k leaves the blocks 0 to k untouched, so the counterfactual run continues from the base run's state
after block k; in evaluation mode the result equals that of a full second run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.interchange.mappings import Site
from potstill.models.backbone import Backbone
from potstill.models.views import Flow


@dataclass
class Swap:
    """Positions of one padded micro-batch that take a value from the source, on the model's device.

    Attributes:
        base: `(swaps,)` indices into the flattened `(batch * length)` of the base.
        source: `(swaps,)` indices into the flattened positions of the source: the same micro-batch if sources are in
            the batch.
        draw: Random number of the step; its mapping is `mappings[draw % len(mappings)]`.

    Example:
        >>> import torch
        >>> from potstill.interchange import Swap
        >>> swap = Swap(base=torch.tensor([1]), source=torch.tensor([6]))  # of sequences of length 5
        >>> swap.reverse().base
        tensor([6])
    """

    base: Tensor
    source: Tensor
    draw: int = 0

    def reverse(self) -> Swap:
        """The other direction, at the same positions."""
        return Swap(self.source, self.base, self.draw)


class Run(NamedTuple):
    """A model's run over a micro-batch.

    Attributes:
        flow: Embedded sequences, with masks.
        kept: Residual stream after each requested block, `(batch, length, width)`.
        last_BLD: `(batch, length, width)` after the final norm; None if the run stopped early.
    """

    flow: Flow
    kept: dict[int, Tensor]
    last_BLD: Tensor | None

    def state(self, block: int) -> Tensor:
        """The residual stream after a block; the embeddings for -1."""
        return self.flow.hidden_BLD if block < 0 else self.kept[block]


def run(backbone: Backbone, flow: Flow, keep: Collection[int] = (), *, whole: bool = True) -> Run:
    """Run a model from its embeddings, and keep the states that interventions read.

    Args:
        backbone: The model.
        flow: Embedded sequences.
        keep: Blocks whose output is kept; -1, the embeddings, is always kept.
        whole: Whether to run to the end instead of to the last kept block.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from potstill.interchange import Swap, counterfactual, read_mappings, run
        >>> from potstill.models import backbone_of
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                     intermediate_size=16)
        >>> backbone = backbone_of(BertForMaskedLM(config).eval())
        >>> base = run(backbone, backbone.embed(torch.tensor([[1, 2, 3]])), keep=[1])
        >>> base.state(1).shape, base.last_BLD.shape
        (torch.Size([1, 3, 16]), torch.Size([1, 3, 16]))
    """
    keep = {block for block in keep if block >= 0}
    stop = backbone.depth if whole else max(keep, default=-1) + 1
    hidden_BLD, kept = backbone.blocks(flow, stop=stop, keep=keep)
    return Run(flow, kept, backbone.finish(hidden_BLD) if whole else None)


def blocks_read(sites: Iterable[Site], read_site: str) -> set[int]:
    """Blocks whose output the source must keep; -1 for its embeddings."""
    return {read_block(site, read_site) for site in sites}


def read_block(site: Site, read_site: str) -> int:
    """The block whose output is written after `site.block`.

    It is this block in the definition, `block_output` (Geiger et al. 2022, arXiv:2112.00826), and the one before it
    for `block_input`, as in the published code of Wu et al. 2022.
    """
    return site.block - (read_site == "block_input")


def counterfactual(
    backbone: Backbone, base: Run, source: Run, sites: Sequence[Site], swap: Swap, read_site: str = "block_output"
) -> Tensor:
    """The last hidden states of the base run if its sites had the source's values at the swapped positions.

    Gradients flow into both runs.

    Args:
        backbone: The model.
        base: Run that has kept the block of the first site.
        source: Run that has kept `blocks_read`; the same run as `base` if sources are in the batch.
        sites: Sites in order of their blocks; all are set.
        swap: Positions.
        read_site: `block_output`, or `block_input` for parity with the published code.

    Returns:
        `(batch, length, width)`, after the final norm.

    Example:
        After block 1 of four, the first sequence gets the second one's state at position 2, and the reverse.

        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from potstill.interchange import Swap, counterfactual, read_mappings, run
        >>> from potstill.models import backbone_of
        >>> config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        ...                     intermediate_size=16)
        >>> backbone = backbone_of(BertForMaskedLM(config).eval())
        >>> (mapping,) = read_mappings("single_middle", backbone, backbone)
        >>> ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
        >>> base = run(backbone, backbone.embed(ids), keep=[site.block for site in mapping.teacher])
        >>> swap = Swap(base=torch.tensor([2, 5]), source=torch.tensor([5, 2]))
        >>> states = counterfactual(backbone, base, base, mapping.teacher, swap)
        >>> states.shape, torch.equal(states, base.last_BLD)
        (torch.Size([2, 3, 16]), False)
    """
    last_BLD = counterfactual_run(backbone, base, source, sites, swap, read_site).last_BLD
    assert last_BLD is not None
    return last_BLD


def counterfactual_run(
    backbone: Backbone,
    base: Run,
    source: Run,
    sites: Sequence[Site],
    swap: Swap,
    read_site: str = "block_output",
    keep: Collection[int] = (),
) -> Run:
    """As `counterfactual`, with the states after some blocks.

    Args:
        backbone: The model.
        base: Run that has kept the block of the first site, and those of `keep` before it, which the swap leaves as
            they are.
        source: See `counterfactual`.
        sites: See `counterfactual`.
        swap: See `counterfactual`.
        read_site: See `counterfactual`.
        keep: Blocks whose output is kept; that of a site's block has the source's values.
    """
    first = sites[0].block
    hidden_BLD, start = base.state(first), first + 1
    kept = {block: base.state(block) for block in keep if 0 <= block < first}
    for site in sites:
        hidden_BLD, between = _resumed(backbone, base.flow, hidden_BLD, start, site.block + 1, keep)
        hidden_BLD = write(hidden_BLD, source.state(read_block(site, read_site)), site, swap)
        kept |= between | ({site.block: hidden_BLD} if site.block in keep else {})
        start = site.block + 1
    hidden_BLD, after = _resumed(backbone, base.flow, hidden_BLD, start, backbone.depth, keep)
    return Run(base.flow, kept | after, backbone.finish(hidden_BLD))


def _resumed(
    backbone: Backbone, flow: Flow, hidden_BLD: Tensor, start: int, stop: int, keep: Collection[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the blocks start, ..., stop - 1 of a model, and keep the outputs of those in `keep`."""
    return backbone.blocks(flow.resume(hidden_BLD), start, stop, [block for block in keep if start <= block < stop])


def write(hidden_BLD: Tensor, source_BLD: Tensor, site: Site, swap: Swap) -> Tensor:
    """A copy of the base's states with the site's columns, at the swapped positions, from the source."""
    base_ND, source_ND = hidden_BLD.flatten(0, 1), source_BLD.flatten(0, 1)
    values_SD = source_ND.index_select(0, swap.source).to(base_ND.dtype)
    if site.columns != ((0, base_ND.shape[1]),):
        own_SD = base_ND.index_select(0, swap.base)
        swapped_D = torch.zeros(base_ND.shape[1], dtype=torch.bool, device=base_ND.device)
        for start, stop in site.columns:
            swapped_D[start:stop] = True
        values_SD = torch.where(swapped_D, values_SD, own_SD)
    return base_ND.index_copy(0, swap.base, values_SD).view_as(hidden_BLD)


def swap_tokens(base_ids_BL: Tensor, source_ids_BL: Tensor, swap: Swap) -> Tensor:
    """Token ids of the base with the source's tokens at the swapped positions: augmentation instead of intervention."""
    flat = base_ids_BL.flatten()
    return flat.index_copy(0, swap.base, source_ids_BL.flatten()[swap.source]).view_as(base_ids_BL)

"""What GPUs send each other in one layer, and between pipeline stages.

Tensor-parallel all-reduces, expert exchanges and hand-overs are exposed. The ring of context
parallelism overlaps with the attention that it feeds (arXiv:2310.01889), so it shows only where it
is the longer.
"""

from __future__ import annotations

from typing import Any

from lcprof import num
from lcprof.cost.expected.kernels import (
    expert_exchange,
    hand_over,
    is_on_bus,
    nccl,
    node_gpus,
    own_all_reduce,
)
from lcprof.cost.expected.task import Task, UnmeasuredError
from lcprof.cost.layer import Batch, reached_ranks
from lcprof.cost.operation import ACTIVATION_BYTES
from lcprof.cost.timing.ceilings import TYPICAL_SM_COUNT
from lcprof.cost.timing.collective import (
    COLLECTIVE,
    SWITCHED_RANKS,
    CollectiveCall,
    narrow_limit,
    own_kernel,
)
from lcprof.cost.timing.exchange import EXCHANGE, ExchangeCall, expert_sms
from lcprof.domain.deployment import NETWORK_BYTES_PER_S, NODE_GPUS, Deployment
from lcprof.domain.gpu import Gpu
from lcprof.domain.model import FeedForward, LayerGroup, ModelShape
from lcprof.num import Num

COLLECTIVES = "collectives"
EXCHANGE_SMS = 20.0
"""SMs that DeepEP's normal kernels run on, by its default configuration."""
LOW_LATENCY_TOKENS = 128.0
"""Tokens of a GPU up to which DeepEP's low-latency kernels are meant."""


def nodes_of(gpu: Gpu, count: int) -> float:
    """The nodes that so many GPUs fill."""
    return float(-(-count // node_gpus(gpu)))


def all_reduce(deployment: Deployment, buffer_bytes: Num, *, eager: bool, count: float) -> Task:
    """`count` all-reduces of a buffer over the tensor-parallel ranks."""
    hopper = deployment.gpu.architecture == "Hopper"
    own = own_kernel(deployment.stack, float(deployment.tp), hopper=hopper)
    ranks, nodes = float(deployment.tp), nodes_of(deployment.gpu, deployment.tp)
    bus = is_on_bus(deployment.gpu, deployment.tp)
    call = CollectiveCall(
        buffer_bytes=buffer_bytes,
        ranks=ranks,
        passes=2.0,
        nodes=nodes,
        narrow_bytes=narrow_limit(ranks, nodes),
        on_bus=float(bus),
        in_switch=float(hopper and not bus and deployment.tp == SWITCHED_RANKS),
        own_limit_bytes=own.limit_bytes if nodes == 1.0 and not bus else 0.0,
        one_shot_bytes=own.one_shot_bytes,
        eager=eager,
    )
    return Task(
        operation=COLLECTIVES,
        family=COLLECTIVE,
        variants=own_all_reduce(deployment, eager=eager),
        call=call,
        count=count,
    )


def library_task(
    deployment: Deployment,
    *,
    ranks: int,
    span: int,
    buffer_bytes: Num,
    passes: float = 1.0,
    count: float = 1.0,
    hidden_behind: str = "",
) -> Task:
    """`count` collectives of the library over `ranks` GPUs, which lie within `span` GPUs."""
    call = CollectiveCall(
        buffer_bytes=buffer_bytes,
        ranks=float(ranks),
        passes=passes,
        nodes=min(float(ranks), nodes_of(deployment.gpu, span)),
        on_bus=float(is_on_bus(deployment.gpu, span)),
    )
    return Task(
        operation=COLLECTIVES,
        family=COLLECTIVE,
        variants=nccl(deployment.gpu, span),
        call=call,
        count=count,
        hidden_behind=hidden_behind,
    )


def layer_exchanges(
    model: ModelShape,
    group: LayerGroup,
    deployment: Deployment,
    batch: Batch[Num],
    *,
    eager: bool,
) -> list[Task]:
    """The collectives of one layer for tensor, data and expert parallelism, in one pass."""
    tasks: list[Task] = []
    state = float(model.hidden * ACTIVATION_BYTES)
    mine = batch.rank_tokens / batch.steps
    ffn = group.ffn
    shared_out = ffn is not None and bool(ffn.experts) and deployment.dp > 1
    parts = float(group.mixer is not None) + float(ffn is not None and not shared_out)
    if deployment.tp > 1 and parts:
        tasks.append(all_reduce(deployment, mine * state, eager=eager, count=parts))
    if ffn is None or not shared_out:
        return tasks
    if deployment.ep > 1:
        tasks += expert_exchanges(model, ffn, deployment, mine / deployment.tp)
    else:
        ranks = deployment.tp * deployment.dp
        every = batch.expert_tokens / batch.steps * state
        tasks.append(
            library_task(deployment, ranks=ranks, span=ranks, buffer_bytes=every, count=2.0)
        )
    return tasks


def expert_exchanges(
    model: ModelShape, ffn: FeedForward, deployment: Deployment, tokens: Num
) -> list[Task]:
    """Handing the tokens of each GPU to their experts' GPUs and back. DeepEP was measured on one
    node: between nodes, a token goes once to each node that holds one of its experts, at the
    network's rate. Raises UnmeasuredError for GPUs that NVLink does not join."""
    if is_on_bus(deployment.gpu, min(deployment.tp * deployment.dp, NODE_GPUS)):
        raise UnmeasuredError("expert parallelism was measured over NVLink alone")
    hidden, top_k, ep = float(model.hidden), ffn.experts_per_token, deployment.ep
    sm_count = deployment.gpu.sm_count or TYPICAL_SM_COUNT
    nodes = int(nodes_of(deployment.gpu, deployment.tp * deployment.dp))
    far = reached_ranks(top_k, ffn.experts, nodes) * (nodes - 1) / nodes
    tasks: list[Task] = []
    few: Any = num.choose(tokens <= LOW_LATENCY_TOKENS, 1.0, 0.0)
    for part, element_bytes in (("dispatch", 1.0), ("combine", 2.0)):
        for low_latency, count in ((True, few), (False, 1.0 - few)):
            if isinstance(count, float) and not count:
                continue
            copies = float(top_k) if low_latency else reached_ranks(top_k, ffn.experts, ep)
            call = ExchangeCall(
                tokens=tokens,
                hidden=hidden,
                copies=copies,
                sms=expert_sms(ffn.experts, sm_count) if low_latency else EXCHANGE_SMS,
                element_bytes=element_bytes,
                polled=float(ffn.experts) if low_latency else 0.0,
                far_copies=far,
                network_bytes_per_s=NETWORK_BYTES_PER_S,
            )
            tasks.append(
                Task(
                    operation=COLLECTIVES,
                    family=EXCHANGE,
                    variants=expert_exchange(part, low_latency=low_latency, nodes=nodes),
                    call=call,
                    count=count,
                )
            )
    return tasks


def stage_exchanges(model: ModelShape, deployment: Deployment, tokens: Num) -> list[Task]:
    """Handing the hidden state of `tokens` tokens over all boundaries between stages, a slice from
    each rank. Stages lie one after the other, so boundaries cross to another node where one is
    full."""
    sent = tokens * (model.hidden * ACTIVATION_BYTES / deployment.tp)
    stage_gpus = deployment.tp * deployment.cp * deployment.dp
    stages_a_node = max(node_gpus(deployment.gpu) // stage_gpus, 1)
    across = -(-deployment.pp // stages_a_node) - 1
    tasks: list[Task] = []
    for crosses, count in ((False, deployment.pp - 1 - across), (True, across)):
        if not count:
            continue
        bus = is_on_bus(deployment.gpu, deployment.tp * 2) and not crosses
        call = CollectiveCall(
            buffer_bytes=sent, ranks=2.0, passes=2.0, nodes=1.0 + crosses, on_bus=float(bus)
        )
        tasks.append(
            Task(
                operation=COLLECTIVES,
                family=COLLECTIVE,
                variants=hand_over(deployment.gpu, across=crosses),
                call=call,
                count=float(count),
            )
        )
    return tasks

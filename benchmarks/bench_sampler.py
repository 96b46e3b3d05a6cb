"""How much measuring slows what is measured: calls in a row with the sampler and without.

Run: python benchmarks/bench_sampler.py [SCENARIO.yaml] [--device cpu] [--seconds 1] [--points 12]
Exit status: 0 when no point takes more than 1 % longer with the sampler, else 1.
"""

from __future__ import annotations

import argparse
import sys

from lcprof.flags import plan_asked
from lcprof.measure.perturbation import perturbation
from lcprof.measure.points import Point, chosen_operations, implementations, points_of
from lcprof.measure.session import open_session
from lcprof.measure.work import PointWorkshop
from lcprof.units import show_seconds

LIMIT = 0.01


def spread(points: list[Point], count: int) -> list[Point]:
    """So many points, of each operation in turn."""
    by_operation: dict[str, list[Point]] = {}
    for point in points:
        if not point.why:
            by_operation.setdefault(point.operation, []).append(point)
    longest = max(map(len, by_operation.values()), default=0)
    turns = [same[i] for i in range(longest) for same in by_operation.values() if i < len(same)]
    return turns[:count]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", nargs="?", default="scenarios/standard/llama-3.1-8b.yaml")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--points", type=int, default=12)
    asked = parser.parse_args()
    session = open_session(asked.device)
    workshop = PointWorkshop(place=session.device.place)
    cases = [row.case for row in plan_asked(asked.scenario, {}, ()).rows]
    made = points_of(
        cases,
        impls=implementations((), asked.device),
        only=chosen_operations(()),
        device=asked.device,
    )
    fitting = [p for p in made if p.why or workshop.needed_bytes(p) < session.device.free_bytes()]
    shares = []
    for point in spread(fitting, asked.points):
        work = workshop.prepare(point)
        found = perturbation(session.device, session.board, work.run, seconds=asked.seconds)
        shares.append(found.share)
        times = f"{show_seconds(found.without_s)} without, {show_seconds(found.with_s)} with"
        print(f"{100 * found.share:+7.2f}%  {times}  {point.key}", flush=True)
        del work
        session.device.release()
    print(f"{100 * max(shares):+7.2f}%  at most, of {len(shares)} points; limit {LIMIT:.0%}")
    return int(max(shares) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

"""The engine again, one iteration after another and nothing else, for the compiled one to equal.

Plain Python on whole picoseconds. `admission` follows vLLM V1's scheduler: the running first, then
the waiting, the worst-ranked running request evicted where KV blocks run out. `iteration` follows
vllm-ltr's: everything in one order, a strict prefix of it runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from sooner.core import View
from sooner.policies import Policy
from sooner.sim.cost import Engine, ticks
from sooner.sim.options import Options
from sooner.sim.ticks import coefficient_ticks, ready_ticks, work_ticks
from sooner.work import Usual
from sooner.workloads.columns import Workload

USUAL = {"usual_wait", "usual_work"}
PATIENCE = 10_000
"""Steps without a token, after which requests only evict each other."""


@dataclass(slots=True, eq=False)
class Job:
    id: int
    ready: int
    cancel: int | None
    arrival: float
    prompt: int
    output: int
    predicted: float
    score: float
    deadline: float
    level: float = 0.0
    tenant: int = 0
    cached: int = 0
    pressure: float = 0.0
    work: int = 0  # [ps], at its instance
    computed: int = 0
    generated: int = 0
    held: int = 0
    swapped: int = 0
    decoding: bool = False
    running: bool = False
    idle: int = 0
    quantum: int = 0
    promoted: bool = False
    preemptions: int = 0
    start: int = -1
    first: int = -1
    finish: int = -1
    place: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.generated


@dataclass(slots=True, eq=False)
class Instance:
    engine: Engine
    policy: Policy
    options: Options
    free: int
    host: int
    now: int = 0
    waiting: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    just_ended: list[Job] = field(default_factory=list)
    mean_wait: float = 0.0
    mean_predicted: float = 0.0
    barren: int = 0  # steps since the last token
    counters: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    last: int | None = None  # the tenant who was last to leave the waiting
    usual: Usual = field(default_factory=Usual)

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.engine.block_size)

    def order(self, job: Job) -> tuple[object, ...]:
        """Where a job stands: promoted, key, running, arrival."""
        now = job.arrival if self.policy.static else self.now * 1e-12
        attained = 0 if self.policy.static else job.generated
        view = View(
            job.arrival,
            float(job.prompt),
            job.predicted,
            job.score,
            float(attained),
            float(job.cached),
            job.deadline,
            job.pressure,
            job.level,
            0.0 if self.policy.static else self.counters[job.tenant] / self.multiple,
            job.work * 1e-12,
            self.usual.wait,
            self.usual.work,
        )
        return (not job.promoted, float(self.policy.key(view, now)), not job.running, job.id)

    def pace(self) -> int:
        a, _, c, _ = coefficient_ticks(self.engine)
        return a // self.engine.max_num_seqs + c

    @property
    def multiple(self) -> int:
        return math.lcm(*self.options.weights.values())

    def charge(self, job: Job, amount: int) -> None:
        self.counters[job.tenant] += amount * self.multiple // self.options.weights.get(job.tenant, 1)

    def wait(self, job: Job) -> None:
        """Let a job wait, its tenant lifted where it had nobody waiting."""
        others = {other.tenant for other in self.waiting}
        if job.tenant not in others:
            floors = [self.counters[tenant] for tenant in others]
            if not floors and self.last is not None:
                floors = [self.counters[self.last]]
            self.counters[job.tenant] = max(self.counters[job.tenant], min(floors, default=0))
        self.waiting.append(job)

    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def arrive(self, job: Job) -> None:
        if not self.busy():
            self.now = max(self.now, job.ready)
        if self.blocks(job.prompt + job.output - 1) > self.engine.num_blocks:
            job.finish = -3
            return
        job.computed = job.cached
        self.usual.arrive(sum(other.work for other in self.waiting) * 1e-12)
        self.usual.weigh(job.work * 1e-12)
        told = self.usual.tell() and not self.policy.reads.isdisjoint(USUAL)
        for placed in [job, *(self.waiting + self.running if told else ())]:
            placed.pressure = self.mean_wait / self.mean_predicted if self.mean_predicted > 0 else 0.0
        if self.options.predict_blocks:
            self.now += ticks(self.options.predict_s)
        self.wait(job)

    def begin(self, job: Job) -> None:
        if job.start < 0:
            job.start = self.now
            self.charge(job, job.prompt)
            self.mean_wait += (self.now * 1e-12 - job.arrival - self.mean_wait) / 64.0
            self.mean_predicted += (job.predicted - self.mean_predicted) / 64.0

    def cancel_due(self, until: int) -> None:
        leavers = [(j.cancel, j.id, j) for j in self.waiting + self.running if j.cancel is not None]
        for cancel, _, job in sorted(leavers, key=lambda leaver: leaver[:2]):
            if cancel > until:
                break
            if job in self.waiting:
                self.waiting.remove(job)
                self.last = job.tenant
            else:
                self.running.remove(job)
            job.finish = -2
            self.free += job.held
            self.host += job.swapped

    def promote(self) -> None:
        if self.options.guard:
            for job in self.waiting + self.running:
                if job.idle >= self.options.guard:
                    job.promoted, job.idle, job.quantum = True, 0, self.options.quantum
                elif job.promoted and job.quantum <= 0:
                    job.promoted = False

    def step(self, iteration_level: bool) -> None:
        self.just_ended = []
        self.cancel_due(self.now)
        if not self.busy():
            return
        self.promote()
        scheduled, moved = self.by_iteration() if iteration_level else (self.by_admission(), 0)
        self.execute(
            scheduled, moved, set(scheduled) if iteration_level else set(self.running), iteration_level
        )

    def by_admission(self) -> dict[Job, int]:
        scheduled: dict[Job, int] = {}
        budget, evicted, i = self.engine.max_num_batched_tokens, False, 0
        while i < len(self.running) and budget > 0:
            job = self.running[i]
            want = min(job.total - job.computed, budget)
            need = self.blocks(job.computed + want) - job.held
            while need > self.free:
                victim = max(self.running, key=self.order)
                at = self.running.index(victim)
                self.running.remove(victim)
                i -= at < i
                budget += scheduled.pop(victim, 0)
                self.free += victim.held
                victim.held = victim.computed = 0
                victim.decoding = victim.running = False
                victim.preemptions += 1
                self.wait(victim)
                evicted = True
                if victim is job:
                    break
            if job not in self.running:
                break
            self.free -= need
            job.held += need
            scheduled[job] = want
            budget -= want
            i += 1
        passed: list[Job] = []
        while not evicted and budget > 0 and len(self.running) < self.engine.max_num_seqs:
            candidates = [job for job in self.waiting if job not in passed]
            if not candidates:
                break
            job = min(candidates, key=self.order)
            mark = self.engine.watermark_blocks if self.running else 0
            if self.blocks(job.total) + mark > self.free:
                if not self.options.backfill:
                    break
                passed.append(job)
                continue
            self.waiting.remove(job)
            self.last = job.tenant
            self.running.append(job)
            job.computed = job.cached
            want = min(job.total - job.computed, budget)
            job.held = self.blocks(job.computed + want)
            self.free -= job.held
            scheduled[job] = want
            budget -= want
            self.begin(job)
        return scheduled

    def need(self, job: Job, want: int) -> int:
        if job.held:
            return max(0, self.blocks(job.computed + want) - job.held)
        if job.swapped:
            return max(job.swapped, self.blocks(job.computed + want))
        return self.blocks(job.total)

    def evict(self, job: Job) -> int:
        moved = 0
        self.free += job.held
        if self.options.swap and job.held <= self.host:
            self.host -= job.held
            moved = job.swapped = job.held
        else:
            job.computed, job.decoding = job.cached, False
        job.held = 0
        job.preemptions += 1
        return moved

    def by_iteration(self) -> tuple[dict[Job, int], int]:
        order = sorted(self.waiting + self.running, key=self.order)
        chosen: dict[Job, int] = {}
        budget, moved = self.engine.max_num_batched_tokens, 0
        for job in order:
            if len(chosen) == self.engine.max_num_seqs or budget == 0:
                break
            chosen[job] = min(job.total - job.computed, budget)
            budget -= chosen[job]

        def short() -> bool:
            mark = self.engine.watermark_blocks if len(chosen) > 1 else 0
            return sum(self.need(job, want) for job, want in chosen.items()) + mark > self.free

        while short():
            holders = [job for job in order if job not in chosen and job.held]
            if holders:
                moved += self.evict(holders[-1])
            else:
                dropped = list(chosen)[-1]
                del chosen[dropped]
                if dropped.held:
                    moved += self.evict(dropped)
        for job, want in chosen.items():
            need = self.need(job, want)
            if job in self.waiting:
                self.last = job.tenant
            moved += job.swapped
            self.host += job.swapped
            job.swapped = 0
            job.held += need
            self.free -= need
            self.begin(job)
        self.running = [job for job in order if job in chosen]
        self.waiting = [job for job in order if job not in chosen]
        return chosen, moved

    def execute(self, scheduled: dict[Job, int], moved: int, active: set[Job], iteration_level: bool) -> None:
        """Run what was scheduled; `active` are those the starvation guard takes for executed."""
        a, b, c, d = coefficient_ticks(self.engine)
        decoding = [job for job in scheduled if job.decoding]
        prefill = sum(want for job, want in scheduled.items() if not job.decoding)
        if scheduled:
            self.now += a + b * prefill + c * len(decoding) + d * sum(job.total for job in decoding)
        self.now += ticks(self.engine.swap_block_s) * moved
        self.barren += 1
        for job in self.waiting + self.running:
            job.running = iteration_level and job in scheduled  # ties go to who runs
            job.idle = 0 if job in active else job.idle + 1
            job.quantum -= job.promoted and job in active
        for job, want in scheduled.items():
            job.computed += want
            if job.computed < job.total:
                continue
            job.decoding = True
            job.generated += 1
            self.charge(job, 2)
            self.barren = 0
            job.first = self.now if job.first < 0 else job.first
            if job.generated == job.output:
                job.finish = self.now
                self.free += job.held
                self.running.remove(job)
                self.just_ended.append(job)


def choose(instances: list[Instance], router: str, count: int, job: Job, prefix: int, work: list[int]) -> int:
    """The router, on the state as it is when the request comes; `work` [ps] is what it is at each."""
    if router == "round-robin":
        return count % len(instances)
    if router == "prefix-affinity":
        return prefix % len(instances)
    loads: list[int] = []
    for instance in instances:
        here = [j for j in instance.waiting + instance.running if j.cancel is None or j.cancel >= job.ready]
        there = here + (instance.just_ended if instance.now > job.ready else [])
        if router == "least-requests":
            loads.append(len(there))
        elif router == "vllm-dp":
            waiting = sum(j in instance.waiting for j in there)
            loads.append(len(there) + 3 * waiting)
        elif router == "least-work":
            mine = work[instances.index(instance)]
            loads.append(sum(j.work for j in there) + mine)
        elif router == "free-first":
            mine = work[instances.index(instance)]
            full = 2**61 if len(there) >= instance.engine.max_num_seqs else 0
            loads.append(full + sum(j.work for j in there) + mine)
        elif router == "least-tokens":
            loads.append(sum(int(j.predicted) for j in there))
        else:
            loads.append(sum(int(j.predicted) for j in there) * instance.pace())
    return loads.index(min(loads))


def simulate(
    workload: Workload,
    engines: list[Engine],
    policy: Policy,
    predicted: list[float],
    score: list[float],
    options: Options,
    router: str = "round-robin",
) -> list[Job]:
    """Serve the workload; returns every job with its times [ps], in order of arrival."""
    reorder = policy.preemptive if options.iteration_level is None else options.iteration_level
    instances = [Instance(e, policy, options, free=e.num_blocks, host=e.swap_blocks) for e in engines]
    works = [work_ticks(workload, e, np.array(predicted)).tolist() for e in engines]
    jobs = []
    for i, ready in enumerate(ready_ticks(workload, options).tolist()):
        leaves = workload.cancel_time[i]
        jobs.append(
            Job(
                id=i,
                ready=ready,
                cancel=max(ticks(leaves), ready) if leaves != float("inf") else None,
                arrival=float(workload.arrival_time[i]),
                prompt=int(workload.prompt_len[i]),
                output=int(workload.output_len[i]),
                predicted=predicted[i],
                score=score[i],
                deadline=float(workload.deadline[i]),
                level=float(workload.level[i]),
                tenant=int(workload.tenant[i]),
                cached=int(workload.cached_len[i]),
            )
        )
    for i, job in enumerate(jobs):
        for instance in instances:
            while instance.now < job.ready and instance.busy() and instance.barren < PATIENCE:
                instance.step(reorder)
        there = [column[i] for column in works]
        job.place = choose(instances, router, i, job, int(workload.prefix[i]), there)
        job.work = there[job.place]
        if not reorder:  # at the iteration level, who leaves is seen at the next step, after who comes
            instances[job.place].cancel_due(job.ready - 1)
        instances[job.place].arrive(job)
    for instance in instances:
        while instance.busy() and instance.barren < PATIENCE:
            instance.step(reorder)
    return jobs

"""What each choice in the training of an Aligner is worth: the demo's recipe with one of them changed, over five seeds.

    python benchmarks/ablations.py --work ablations-work     # trains, measures, stores and prints the tables
    python benchmarks/ablations.py show                      # the tables alone, from the stored file

For each seed the support desk's base and upstreams are trained once, then one Aligner for each arm of `ARMS`: same seed, same
number of optimiser steps. Scale: the quick demo's part of the desk and its steps, but gold answers in the proportions of
the full demo, half of a population of upstreams and half damaged (`SCALE`). All is measured on `--questions` held-out questions,
of which no model has seen any, and the exact policy of the desk is the judge. They are answered by

- `upstream`: the seed's upstream, whose answers are in every arm's training;
- `after preferences`: this upstream after DPO on exact repairs, as a round would make it; no arm has seen it;
- `other staff`: an upstream that learned from other staff with other faults; no arm has seen it;
- `right answers`: nobody, they are right ones in the world's own words.

What is made lies in --work and is not made again, so that a run may be killed and started again. After each arm
benchmarks/results/ablations.json is written anew, with what is known by then; the tables tell of how many seeds. `--only ARM` is
one arm of several (repeatable) and stores nothing. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "harm"), str(HERE / "tables")]

import desk  # noqa: E402
from ablation_tables import BARE, POLICY, Figures, tables  # noqa: E402
from stored import commit, read, write  # noqa: E402

from aligner_chain import Aligner, Correction, Exchange, __version__  # noqa: E402
from aligner_chain.checkpoint import AlignerMetadata, write_metadata  # noqa: E402
from aligner_chain.checks import Checks  # noqa: E402
from aligner_chain.engines.base import Sampling  # noqa: E402
from aligner_chain.policy import Policy  # noqa: E402
from aligner_chain.templates import get_template  # noqa: E402
from bootstrap.aligner_training import AlignerTrainingSettings, train_aligner, warm_up_rows  # noqa: E402
from bootstrap.answering import Answering  # noqa: E402
from bootstrap.demo import world  # noqa: E402
from bootstrap.demo.models import new_model  # noqa: E402
from bootstrap.demo.roles import YARDSTICK, is_garbled  # noqa: E402
from bootstrap.demo.scale import QUICK  # noqa: E402
from bootstrap.demo.show import machine_figures  # noqa: E402
from bootstrap.demo.start import LEAVE_FROM, MAX_NEW, Population, Workshop, _damaged, demo_dpo, load_model  # noqa: E402
from bootstrap.pairs import Pair, Triple, read_triples, write_triples  # noqa: E402
from bootstrap.training import claim  # noqa: E402
from bootstrap.upstream import save_model, train_upstream  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SCALE = replace(QUICK, threads=1, trial_pairs=160, trial_steps=20, population=400, damaged=1_600)
OWN, BARE_TEXT = "aligner-chain/1", "pku-aligner/2"
"""The demo's template, and one without a verdict, in which the published Aligners were trained."""
OTHERS = world.Faults(rude=0.2, window=0.35, conclusion=0.3, leak=0.4, unanswered=0.4, stubborn=90)
"""The faults of the other staff: others, at other rates, and another wrong window for electronics."""
PREFERENCES, DPO_STEPS = 400, 40
"""Questions whose answers are repaired for the upstream after preferences, and optimiser steps on these pairs."""

Settings = Callable[[AlignerTrainingSettings], AlignerTrainingSettings]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One recipe: how its settings, its base and its gold answers differ from the demo's, and what it is held against.

    `base` is the template in which its base has learned to copy (and to judge, if there is a verdict).
    `gold` names the parts of its training data, of `Shop.gold`.
    """

    change: Settings = lambda settings: settings
    base: str = OWN
    gold: tuple[str, ...] = ("population", "damage")
    against: str = "default"


def keeping(share: float) -> Settings:
    return lambda settings: replace(settings, keep_share=(share, share))


def one_stage(settings: AlignerTrainingSettings) -> AlignerTrainingSettings:
    """Corrections alone, in as many optimiser steps as both stages have."""
    steps = sum(stage.steps for stage in settings.stages.values())
    return replace(settings, warm_up=None, correction=replace(settings.correction, steps=steps))


ARMS = {
    "default": Arm(),
    "0 % right answers": Arm(change=keeping(0.0)),
    "10 % right answers": Arm(change=keeping(0.1)),
    "20 % right answers": Arm(change=keeping(0.2)),
    "50 % right answers": Arm(change=keeping(0.5)),
    "no verdict": Arm(change=lambda settings: replace(settings, template=BARE_TEXT), base=BARE_TEXT),
    "one stage": Arm(change=one_stage),
    "population, undamaged": Arm(gold=("population", "undamaged")),
    "one upstream, undamaged": Arm(gold=("one upstream", "undamaged"), against="population, undamaged"),
}


# --- making --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shop(Workshop):
    """The models and answers of one seed, each made once and then found in its folder."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self._tokenizer()

    def base(self, template: str) -> Path:
        """The demo's base, but that it copies (and judges, if there is a verdict) in `template`."""
        name = f"base-{template.replace('/', '-')}"
        return once(self.folder / name, lambda: self._make_base(name, template))

    def _make_base(self, name: str, template: str) -> None:
        rng, model = self._rng("copies"), new_model(self.tokenizer, seed=self.seed)
        damaged = [_damaged(rng, self.scale.desk) for _ in range(self.scale.rows * 3 // 4)]
        window = model.config.max_position_embeddings
        copies, _ = warm_up_rows(get_template(template), self.tokenizer, damaged, window)
        rows = self._answered(self.tokenizer, "right answers", world.right_answer) + copies
        settings = self._settings(self.scale.base_steps, bucketed=True)
        trained = self._train_rows(model, self.tokenizer, rows, f"{name}-work", settings)
        self._save(trained, self.tokenizer, name)

    @property
    def upstream(self) -> Path:
        return once(self.folder / "upstream", lambda: self._train_upstream(self.tokenizer, self.base(OWN)))

    @property
    def other_staff(self) -> Path:
        return once(self.folder / "other-staff", self._make_other_staff)

    def _make_other_staff(self) -> None:
        rows = self._answered(
            self.tokenizer, "other staff", lambda rng, ticket: world.flawed_answer(rng, ticket, OTHERS)
        )
        settings, model = self._settings(self.scale.upstream_steps), load_model(self.base(OWN))
        trained = self._train_rows(model, self.tokenizer, rows, "other-staff-work", settings)
        self._save(trained, self.tokenizer, "other-staff")

    @property
    def after_preferences(self) -> Path:
        return once(self.folder / "after-preferences", self._make_after_preferences)

    def _make_after_preferences(self) -> None:
        pairs = [
            Pair(turns=one.turns, chosen=one.correction, rejected=one.answer, correction_id=str(number))
            for number, one in enumerate(self._sampled(self.upstream, 1.0, "preferences", PREFERENCES))
            if one.correction is not None
        ]
        settings = demo_dpo(self.scale, self.seed, steps=DPO_STEPS)
        trained = train_upstream(self.upstream, pairs, self.folder / "preferences-work", settings)
        save_model(trained, self.upstream, self.folder / "after-preferences")

    def gold(self, part: str) -> list[Triple]:
        """Answers with their exact repairs. One upstream is asked what the population is, as often.

        Upstreams as bad as these are hardly ever right, so what is not damaged stays where damage is left out.
        """
        makers: Mapping[str, Callable[[], list[Triple]]] = {
            "population": lambda: self._answers_of(self._demo_population),
            "one upstream": lambda: self._answers_of([(self.upstream, 1.0)] * len(self._demo_population)),
            "damage": self._damage,
            "undamaged": lambda: [triple for triple in self._damage() if triple.correction is None],
        }
        folder = self.folder / f"gold-{part.replace(' ', '-')}"
        return read_triples(once(folder, lambda: _write(folder, makers[part]())) / "triples.jsonl")

    @cached_property
    def _demo_population(self) -> Population:
        return self._population(self.upstream)

    def aligner(self, name: str, arm: Arm) -> tuple[Path, Figures]:
        """The folder of an arm's Aligner, and what its training was."""
        folder = self.folder / "arms" / name.replace(" ", "-").replace(",", "").replace("%", "percent")
        once(folder, lambda: self._make_aligner(folder, name, arm))
        return folder, json.loads((folder / "training.json").read_text(encoding="utf-8"))

    def _make_aligner(self, folder: Path, name: str, arm: Arm) -> None:
        settings = arm.change(self._aligner_settings())
        triples = [triple for part in arm.gold for triple in self.gold(part)]
        model, work = load_model(self.base(arm.base)), folder / "work"
        done = train_aligner(model, self.tokenizer, triples, work, settings)
        done.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        verdict = get_template(settings.template).verdict
        told = AlignerMetadata(
            name="ablation",
            version=f"{self.seed}-{name}",
            template=settings.template,
            criteria=world.CRITERIA if verdict else (),
            thresholds={"leave" if verdict else "copy": LEAVE_FROM},
        )
        write_metadata(folder, told)
        steps = {stage: one.steps for stage, one in settings.stages.items()}
        training = {"steps": steps, "rows": done.rows, "right_answers": done.keep_share, "dropped": done.dropped}
        (folder / "training.json").write_text(json.dumps(training), encoding="utf-8")


def once(folder: Path, make: Callable[[], object]) -> Path:
    """Lets `make` fill a folder, unless it was filled before; the mark of that is written last."""
    mark = folder / "whole"
    if not mark.exists():
        make()
        mark.touch()
    return folder


def _write(folder: Path, triples: Iterable[Triple]) -> None:
    folder.mkdir(exist_ok=True)
    write_triples(folder / "triples.jsonl", triples)


# --- measuring -----------------------------------------------------------------------------------------------------


def answered(shop: Shop, questions: int) -> dict[str, list[Exchange]]:
    """Held-out questions of the report set, as each source answers them; an empty answer is none."""
    rng = random.Random(f"{shop.seed} ablations")
    some = desk.prompts(rng, lambda dice: world.draw_held_out_ticket(dice, shop.scale.desk), "report")
    asked = [next(some) for _ in range(questions)]
    answering = Answering(sampling=Sampling(temperature=1.0, seed=shop.seed), max_new=MAX_NEW)
    folders = {"upstream": shop.upstream, "after preferences": shop.after_preferences, "other staff": shop.other_staff}
    found = {name: answering.answer_from(folder, asked, upstream=name) for name, folder in folders.items()}
    found["right answers"] = [replace(one, answer=world.right_answer(rng, world.read_ticket(one))) for one in asked]
    return {name: [one for one in answers if one.answer.strip()] for name, answers in found.items()}


def measure(aligner: Aligner, sources: Mapping[str, Sequence[Exchange]]) -> Figures:
    """Each source under both policies. The model runs once: the default policy is the checks, on what it wrote."""
    bare, found = aligner.under(Policy(checks=Checks.off())), {}
    for name, exchanges in sources.items():
        written = bare.correct(exchanges)
        found[name] = {BARE: shares(written), POLICY: shares(Policy().serve(written))}
    return found


def shares(corrections: Sequence[Correction]) -> Figures:
    """What became of answers, as shares: of the right ones, of the wrong ones (None where there are none), of all."""
    told = YARDSTICK.measure_corrections(corrections)
    rows = list(zip(told.right_alone, told.right_aligned, told.changed, strict=True))
    right, wrong = [row for row in rows if row[0]], [row for row in rows if not row[0]]
    return {
        "n_right": len(right),
        "n_wrong": len(wrong),
        "failed": _share(one.outcome == "failed" for one in corrections),
        "right_before": _share(told.right_alone),
        "garbled_before": _share(told.garbled or ()),
        "wrong_fixed": _share(after for _, after, _ in wrong),
        "wrong_left": _share(not changed for _, _, changed in wrong),
        "right_changed": _share(changed for _, _, changed in right),
        "right_harmed": _share(not after for _, after, _ in right),
        "accepted": _share(not changed for changed in told.changed),
        "garbled": _share(is_garbled(text) for text in told.texts),
        "right_after": _share(told.right_aligned),
    }


def _share(flags: Iterable[bool]) -> float | None:
    known = list(flags)
    return sum(known) / len(known) if known else None


# --- the command ---------------------------------------------------------------------------------------------------


def run(shop: Shop, name: str, questions: int, sources: Callable[[], Mapping[str, Sequence[Exchange]]]) -> Figures:
    """One arm of one seed: trained and measured, unless it was; its figures are kept in its folder."""
    folder, training = shop.aligner(name, ARMS[name])
    path = folder / f"measured-{questions}.json"
    if not path.exists():
        with contextlib.closing(Aligner.from_pretrained(folder)) as aligner:
            path.write_text(json.dumps(measure(aligner, sources())), encoding="utf-8")
        shop.say(f"seed {shop.seed}: {name}")
    return {"training": training, "sources": json.loads(path.read_text(encoding="utf-8"))}


def run_all(seeds: Sequence[int], arms: Sequence[str], work: Path, questions: int) -> Iterator[Figures]:
    """What is known after each arm.

    Raises:
        ConfigurationError: A folder of `work` is of another scale.
    """
    runs: dict[str, dict[str, Figures]] = {}
    for seed in seeds:
        shop = Shop(folder=work / f"seed-{seed}", seed=seed, scale=SCALE, say=_say)
        claim(shop.folder, {"seed": seed, "scale": asdict(SCALE)})
        sources = cache(partial(answered, shop, questions))
        for name in arms:
            runs.setdefault(str(seed), {})[name] = run(shop, name, questions, sources)
            yield described(runs, questions)


def described(runs: Mapping[str, Mapping[str, Figures]], questions: int) -> Figures:
    """What is stored; not how long it took, since a run may be made in parts."""
    run_on = machine_figures(time.monotonic())
    names = [name for name in ARMS if any(name in arms for arms in runs.values())]
    return {
        "commit": commit(),
        "machine": run_on["machine"],
        "versions": {**run_on["versions"], "aligner_chain": __version__},
        "threads": 1,
        "scale": asdict(SCALE),
        "questions": questions,
        "arms": {name: {"against": ARMS[name].against} for name in names},
        "runs": runs,
    }


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["run", "show"], default="run")
    parser.add_argument("--work", type=Path, default=Path("ablations-work"), help="where all that is made is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22, 23, 24])
    parser.add_argument(
        "--only", choices=ARMS, action="append", metavar="ARM", help="one of: " + ", ".join(ARMS).replace("%", "%%")
    )
    parser.add_argument("--questions", type=int, default=200, help="held-out questions of each source")
    given = parser.parse_args()
    if given.what == "show":
        _say("\n".join(tables(read("ablations"))))
        return
    told: Figures = {}
    for told in run_all(given.seeds, given.only or [*ARMS], given.work, given.questions):
        if not given.only:
            write("ablations", told)
    _say("\n".join(tables(told)))


if __name__ == "__main__":
    main()

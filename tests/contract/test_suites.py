"""Published tests of language models: files read, prompts rendered as published, answers scored, code kept in."""

from __future__ import annotations

import gzip
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundup import plan as planning
from groundup.artifact import Store
from groundup.errors import DataError, Mistakes, UserError
from groundup.evaluation.suites import arithmetic, code, likelihood, multiple_choice, questions, running
from groundup.evaluation.suites.questions import Question
from groundup.evaluation.suites.running import Model
from groundup.recipe import load
from groundup.runner import run

MMLU = {
    "dev/moral_disputes_dev.csv": 'question,choice0,choice1,choice2,choice3,answer\n"Is it, so? ",yes,no,both,none,1\n',
    "test/moral_disputes_test.csv": "question,choice0,choice1,choice2,choice3,answer\n1+1=,1,2,3,4,1\n",
}
CMMLU = {
    "dev/anatomy.csv": ",Question,A,B,C,D,Answer\n0,心脏有几个腔,一,二,三,四,D\n",
    "test/anatomy.csv": ",Question,A,B,C,D,Answer\n0,最大的器官是,皮肤,肝,肺,脑,A\n",
}
ARC = {
    "id": "Q1",
    "question": {"stem": "Which is hot?", "choices": [{"text": "ice", "label": "1"}, {"text": "fire", "label": "2"}]},
    "answerKey": "B",
}
TRUTHFUL = (
    "Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source\n"
    'A,Myths,"Do pigs fly?",No,Yes,"No; They do not","Yes; Only at night.",x\n'
)


def packed(files: dict[str, str], place: Path) -> Path:
    if place.suffix == ".zip":
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    for name, text in files.items() if place.suffix != ".zip" else ():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    return place


@pytest.mark.smoke
@pytest.mark.parametrize("form", ["folder", "mmlu.zip"])
def test_mmlu_is_asked_as_published_from_a_folder_or_a_zip(form: str, tmp_path: Path) -> None:
    (question,) = multiple_choice.mmlu(packed(MMLU, tmp_path / form))
    assert question.prompt == (
        "The following are multiple choice questions (with answers) about moral disputes.\n\n"
        "Is it, so?\nA. yes\nB. no\nC. both\nD. none\nAnswer: B\n\n"
        "1+1=\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert question.continuations == (" A", " B", " C", " D") and question.right == (1,)
    assert question.subject == "moral_disputes" and question.id.endswith("moral_disputes_test.csv:2")
    (bare,) = multiple_choice.mmlu(tmp_path / form, shots=0)
    assert bare.prompt.count("Answer:") == 1


def test_cmmlu_names_its_subjects_in_chinese(tmp_path: Path) -> None:
    (question,) = multiple_choice.cmmlu(packed(CMMLU, tmp_path / "cmmlu"))
    assert question.prompt == (
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n"
        "心脏有几个腔\nA. 一\nB. 二\nC. 三\nD. 四\n答案： D\n\n"
        "最大的器官是\nA. 皮肤\nB. 肝\nC. 肺\nD. 脑\n答案："
    )


def test_arc_and_truthfulqa_compare_whole_answers(tmp_path: Path) -> None:
    arc = tmp_path / "arc.jsonl.gz"
    arc.write_bytes(gzip.compress(json.dumps(ARC).encode()))
    (question,) = multiple_choice.arc(arc)
    assert question.prompt == "Question: Which is hot?\nAnswer:" and question.right == (1,)
    assert question.continuations == (" ice", " fire"), "letters and numbers are told apart by place"
    (shown,) = multiple_choice.arc(arc, examples=arc, shots=1)
    assert shown.prompt == "Question: Which is hot?\nAnswer: fire\n\nQuestion: Which is hot?\nAnswer:"
    truth = tmp_path / "truth.csv"
    truth.write_text(TRUTHFUL, encoding="utf-8")
    (one,), (several,) = multiple_choice.truthfulqa(truth), multiple_choice.truthfulqa(truth, several=True)
    assert one.choices == ("No.", "Yes.", "Only at night.") and one.right == (0,)
    assert several.choices == ("No.", "They do not.", "Yes.", "Only at night.") and several.right == (0, 1)
    assert one.prompt.endswith("held in Barcelona, Spain.\n\nQ: Do pigs fly?\nA:")


@pytest.mark.smoke
def test_choices_are_scored_by_likelihood_and_by_length() -> None:
    asked = [
        Question("1", "a", "p", ("yes", "certainly not"), (1,)),
        Question("2", "a", "p", ("好的", "fine"), (1,)),
        Question("3", "b", "p", ("x", "y"), (0,)),
    ]
    nats = [[-2.0, -4.0], [-6.0, -11.0], [-1.0, -1.0]]
    found = questions.scores(asked, nats)
    assert found["accuracy"].value == pytest.approx(1 / 3), "of equals the first counts"
    assert found["accuracy_by_character"].value == 1.0
    assert found["accuracy_by_byte"].value == pytest.approx(2 / 3), "two Chinese characters are six bytes"
    assert questions.by_subject(asked, found["accuracy"]) == {"a": 0.0, "b": 1.0}
    several = [Question("1", "", "p", ("a", "b", "c"), (0, 1))]
    share = questions.truth_share(several, [[np.log(0.2) - 900, np.log(0.1) - 900, np.log(0.1) - 900]])
    assert share.value == pytest.approx(0.75)


def test_sums_are_asked_and_their_numbers_found(tmp_path: Path) -> None:
    rows = [{"question": "2+3?", "answer": "2+3=5\n#### 5"}, {"question": "Cost?", "answer": "So\n#### 1,200"}]
    path = tmp_path / "gsm.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second = arithmetic.gsm8k(path, examples=path, shots=1)
    assert first.prompt == "Question: 2+3?\nAnswer: 2+3=5\n#### 5\n\nQuestion: 2+3?\nAnswer:"
    texts = [" It is 5.", " 600 + 600 = 1200\n#### $1,200."]
    found = arithmetic.scores([first, second], texts)
    assert found["exact_match_flexible"].value == 1.0
    assert found["exact_match_strict"].value == 0.0, "the mark must stand right before the number"
    assert arithmetic.strict("#### -1,000.50 and #### 7") == "-1,000.50" and arithmetic.flexible("none") == "[invalid]"
    assert arithmetic.normalise("so\n#### $1,200.") == "1200"
    with pytest.raises(DataError, match="no file of them"):
        arithmetic.gsm8k(path)


def test_bad_files_are_named_with_their_row(tmp_path: Path) -> None:
    short = packed({"test/x_test.csv": "q,a,b,c,d,A\nq,a,b\n"}, tmp_path / "short")
    with pytest.raises(DataError, match=r"x_test.csv:2: expected a question, four choices and an answer, found 3"):
        multiple_choice.mmlu(short, shots=0)
    wrong = packed({"test/x_test.csv": "q,a,b,c,d,E\n"}, tmp_path / "wrong")
    with pytest.raises(DataError, match="'E' is none of A to D"):
        multiple_choice.mmlu(wrong, shots=0)
    with pytest.raises(DataError, match=r"no test/\*.csv there"):
        multiple_choice.mmlu(tmp_path, shots=0)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": 1}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"broken.jsonl:1: not a row of ARC"):
        multiple_choice.arc(broken)
    with pytest.raises(DataError, match=r"broken.jsonl:1: not a row of GSM8K"):
        arithmetic.gsm8k(broken, shots=0)
    with pytest.raises(DataError, match="no 'task_id'"):
        code.humaneval(broken)
    for place in (broken, tmp_path / "absent"):
        with pytest.raises(DataError, match="cannot read"):
            multiple_choice.mmlu(place)


def test_the_published_files_are_read_whole(shared_data: Callable[[str], Path]) -> None:
    assert len(multiple_choice.mmlu(shared_data("eval/mmlu_dev_test.zip"))) == 14_042
    chinese = multiple_choice.cmmlu(shared_data("eval/cmmlu_dev_test.zip"))
    assert len(chinese) == 11_582 and len({question.subject for question in chinese}) == 67
    assert len(multiple_choice.arc(shared_data("eval/arc_challenge_test.jsonl.gz"))) == 1_165
    assert len(multiple_choice.truthfulqa(shared_data("eval/TruthfulQA.csv.gz"))) == 790
    sums = arithmetic.gsm8k(shared_data("eval/gsm8k_test.jsonl.gz"), shots=0)
    right = arithmetic.scores(sums, [one.answer for one in sums])
    assert len(sums) == 1_319 and {score.value for score in right.values()} == {1.0}


def test_likelihoods_are_those_of_transformers(shared_data: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from groundup.runtimes import torch as runtimes
    from groundup.text.tokenizers import Tokenizer

    folder = shared_data("models/stories260K/hf")
    runtime, tokenizer = runtimes.load(folder, device="cpu"), Tokenizer.load(folder)
    requests = [
        ("Once upon a time", [" there was a girl", ", in a", " xyz"]),
        ("Lily and Tom went to the park. ", ["They", "Once upon"]),
        ("", ["Once", "There was"]),
    ]
    bos = tokenizer.bos_id
    assert bos is not None
    found = likelihood.log_likelihoods(
        requests,
        tokenizer.encode,
        runtime.forward,
        start=lambda prompt: [bos],
        context=runtime.context,
        batch_tokens=40,
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for (prompt, continuations), row in zip(requests, found, strict=True):
        for continuation, mine in zip(continuations, row, strict=True):
            before, after = likelihood.split(prompt, continuation, tokenizer.encode)
            with torch.no_grad():
                logits = theirs(torch.tensor([[bos, *before, *after]])).logits[0, :-1].log_softmax(-1)
            expected = logits[-len(after) :].gather(1, torch.tensor(after)[:, None])
            assert mine.nats == pytest.approx(float(expected.sum()), abs=1e-3)
            assert mine.is_greedy == bool((logits[-len(after) :].argmax(-1) == torch.tensor(after)).all())
    assert any(one.is_greedy for row in found for one in row) or found[0][0].nats > found[0][2].nats
    letters = [("Once upon a time", [" a", " b", " c"])]
    with pytest.raises(ValueError, match="nothing to score"):
        likelihood.log_likelihoods(
            [("", ["a"])], lambda text: [5] if text else [], runtime.forward, start=lambda _: [], context=8
        )
    short = likelihood.log_likelihoods(letters, tokenizer.encode, runtime.forward, start=lambda _: [bos], context=4)
    assert len(short[0]) == 3


def test_a_suite_is_run_with_plain_functions(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    from groundup.runtimes import torch as runtimes
    from groundup.text.tokenizers import Tokenizer

    folder = shared_data("models/stories260K/hf")
    runtime, tokenizer = runtimes.load(folder, device="cpu"), Tokenizer.load(folder)

    def write(prompt: str, stops: object, most: int) -> str:
        return " It is 5.\n#### 5" if "2+3?\nAnswer:" in prompt[-20:] else " no idea"

    model = Model(tokenizer.encode, runtime.forward, lambda prompt: [1], runtime.context, write)
    arc = tmp_path / "arc.jsonl"
    arc.write_text("\n".join(json.dumps(ARC | {"id": f"Q{n}"}) for n in range(30)), encoding="utf-8")
    told, lines = running.run("arc", arc, model, limit=10, resamples=100)
    assert told["questions"] == 10 and told["questions_in_files"] == 30 and told["chance"] == 0.5
    assert told["scores"]["accuracy"]["estimate"] in (0.0, 1.0), "the same question ten times"
    assert len(json.loads(lines.splitlines()[0])["nats"]) == 2
    sums = tmp_path / "sums.jsonl"
    rows = [{"question": q, "answer": "#### 5"} for q in ("2+3?", "1+4?")]
    sums.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    told, lines = running.run("gsm8k", sums, model, shots=0, resamples=100)
    assert told["main_metric"] == "exact_match_strict" and told["scores"]["exact_match_strict"]["estimate"] == 0.5
    assert json.loads(lines.splitlines()[0])["text"].endswith("#### 5")
    reader = Model(model.encode, model.forward, model.start, model.context)
    with pytest.raises(UserError, match="only reads"):
        running.run("gsm8k", sums, reader, shots=0)
    with pytest.raises(UserError, match="--run-generated-code"):
        running.run("humaneval", sums, model)
    with pytest.raises(DataError, match="no questions"):
        (tmp_path / "none.jsonl").write_text("")
        running.run("arc", tmp_path / "none.jsonl", model)


GOOD = "def add(a, b):\n"
linux = pytest.mark.skipif(sys.platform != "linux", reason="generated code is run on Linux only")


def outcome(body: str, seconds: float = 2.0) -> code.Outcome:
    task = code.Task("T/0", GOOD, "def check(f):\n    assert f(1, 2) == 3\n", "add")
    return code.run(task.program(body), allowed=True, seconds=seconds)


def test_generated_code_runs_only_when_asked_for_by_name() -> None:
    with pytest.raises(UserError, match="--run-generated-code"):
        code.run("print(1)", allowed=False)


@linux
def test_generated_code_is_tried_and_kept_in(tmp_path: Path) -> None:
    assert outcome("    return a + b\n") == "passed"
    assert outcome("    return a - b\n") == "failed"
    assert outcome("    import sys; sys.exit(0)\n") == "failed", "leaving before the test is no pass"
    assert outcome("    while True: pass\n", seconds=1.0) == "timed out"
    assert outcome("    x = bytearray(4 << 30); return a + b\n") == "failed"
    victim = tmp_path / "victim.txt"
    victim.write_text("here", encoding="utf-8")
    for harm in (
        f"open({str(victim)!r}, 'w').write('gone')",
        f"import os; os.remove({str(victim)!r})",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import ctypes; ctypes.CDLL(None)",
    ):
        assert outcome(f"    {harm}\n    return a + b\n") == "failed", harm
    assert victim.read_text(encoding="utf-8") == "here"


@linux
def test_the_published_solutions_pass(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("eval/HumanEval.jsonl.gz")
    tasks = code.humaneval(path)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        solutions = [json.loads(line)["canonical_solution"] for line in file]
    assert len(tasks) == 164
    tried = range(0, 164, 20)
    outcomes = [code.run(tasks[i].program(code.ended(solutions[i] + "\nprint(1)")), allowed=True) for i in tried]
    assert code.pass_rate(outcomes).value == 1.0
    assert code.pass_at_k(1, 2, 1) == 0.5 and code.pass_at_k(3, 4, 2) == 1.0
    assert code.pass_at_k(1, 4, 2) == pytest.approx(0.5)


def test_a_recipe_asks_a_suite(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "arc.jsonl").write_text("\n".join(json.dumps(ARC | {"id": f"Q{n}"}) for n in range(12)))
    folder = shared_data("models/stories260K/hf")
    suite = {"name": "arc", "path": "arc.jsonl", "limit": 8}
    recipe = {"groundup": 1, "name": "asked", "stages": {"r": {"examine": {"of": str(folder), "suites": [suite]}}}}
    (tmp_path / "asked.yaml").write_text(json.dumps(recipe))
    report = run(tmp_path / "asked.yaml")["r"]
    data = report.json("report.json")
    assert data["suites"][0]["questions"] == 8
    assert data["rivals"][0]["score"] == 0.5
    assert "8 of 12 questions" in (report.path / "report.md").read_text()
    assert len((report.path / "said/arc.jsonl").read_text().splitlines()) == 8


def test_a_recipe_alone_never_runs_programs(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shared_data("models/stories260K/hf")
    (tmp_path / "h.jsonl").write_text("{}")
    suites = [{"name": "humaneval", "path": "h.jsonl"}, {"name": "arc", "path": "missing.jsonl"}]
    recipe = {"groundup": 1, "name": "asked", "stages": {"r": {"examine": {"of": str(folder), "suites": suites}}}}
    (tmp_path / "asked.yaml").write_text(json.dumps(recipe))
    with pytest.raises(Mistakes) as caught:
        planning.make(load(tmp_path / "asked.yaml"), Store(), effort="quick")
    assert "runs programs that the model writes" in str(caught.value)
    assert "no file at 'missing.jsonl'" in str(caught.value)

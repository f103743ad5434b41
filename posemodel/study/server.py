"""The questions of the volunteers' page, and their answers. No name of a method is sent to it."""

from datetime import datetime, timezone

from posemodel.runtime.local_server import Refused, field, static_files
from posemodel.study.study import QUESTIONS, SIDES, Study, append_answer, latest, read_answers
from posemodel.study.trials import Trial, plan_trials

_LONGEST_NAME = 40


class StudySite:
    """The page and its questions, for a `LocalServer`."""

    large: dict[str, int] = {}

    def __init__(self, study: Study):
        self.study = study
        self._files = static_files("posemodel.study")
        self._images = {f"/images/{name}": study.folder / "images" / name
                        for name in study.image_names}

    def get(self, path: str) -> tuple[str, bytes]:
        """A file of the page, or a picture of the study. Raises: `Refused`."""
        if path in self._images:
            return "image/png", self._images[path].read_bytes()
        if path not in self._files:
            raise Refused(404, "there is no such page")
        return self._files[path]

    def post(self, path: str, values: dict) -> dict:
        """The answer to a question. Raises: `Refused`."""
        if path == "/api/trial":
            return self._trial(values)
        if path == "/api/answer":
            return self._answer(values)
        raise Refused(404, "there is no such question")

    def _trial(self, values: dict) -> dict:
        """The trial of a number, or the first one without an answer (number -1)."""
        volunteer, trials = self._volunteer(values)
        given = self._given(volunteer)
        open_ = [n for n in range(len(trials)) if len(given.get(n, {})) < len(QUESTIONS)]
        first_open = open_[0] if open_ else len(trials)
        number = field(values, "trial", int)
        number = first_open if number == -1 else number
        if not 0 <= number <= first_open:
            raise Refused(400, "that comparison has not come yet")
        told = {"number": number, "total": len(trials), "done": len(trials) - len(open_),
                "questions": [{"id": key, "text": text} for key, text in QUESTIONS.items()]}
        if number == len(trials):
            return {**told, "finished": True}
        following = trials[number + 1 : number + 2]
        return {**told, "finished": False, "given": given.get(number, {}),
                **_urls(trials[number]), "next": [_urls(trial) for trial in following]}

    def _answer(self, values: dict) -> dict:
        volunteer, trials = self._volunteer(values)
        number, question = field(values, "trial", int), field(values, "question", str)
        choice = field(values, "choice", str)
        if not 0 <= number < len(trials) or question not in QUESTIONS or choice not in SIDES:
            raise Refused(400, "no such comparison, question or side")
        seconds = values.get("seconds")
        if type(seconds) not in (int, float) or not 0 <= seconds < 1e6:
            raise Refused(400, "seconds is missing or no length of time")
        trial = trials[number]
        append_answer(self.study.answers_path, {
            "volunteer": volunteer, "trial": number, "question": question, "choice": choice,
            "chosen": getattr(trial, choice),
            "other": trial.right if choice == "left" else trial.left,
            "repeated": trial.repeated, "seconds": round(seconds, 2),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        return {"saved": True}

    def _volunteer(self, values: dict) -> tuple[str, list[Trial]]:
        name = " ".join(field(values, "name", str).split()).casefold()
        if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
            raise Refused(400, f"a name has 1 to {_LONGEST_NAME} characters")
        return name, plan_trials(self.study, name)

    def _given(self, volunteer: str) -> dict[int, dict[str, str]]:
        """Choices by trial and question."""
        given: dict[int, dict[str, str]] = {}
        rows, _ = read_answers(self.study.answers_path)
        for (who, trial, question), row in latest(rows).items():
            if who == volunteer:
                given.setdefault(trial, {})[question] = row["choice"]
        return given


def _urls(trial: Trial) -> dict[str, str]:
    names = {"source": trial.pair.source, "target": trial.pair.target, "left": trial.left,
             "right": trial.right}
    return {key: f"/images/{name}" for key, name in names.items()}

// Two pictures, two questions. The page is told neither names of methods nor which is which.

import { $, ask, report } from "/server.js";

const SILENCE = "The server does not answer. Your earlier answers are saved; try again in a moment.";
const PICTURES = ["source", "target", "left", "right"];

let name = "";
let trial = null;
let question = 0;
let shownAt = 0;

const askAs = (path, values) => ask(path, { name, ...values }, SILENCE);

// One thing at a time: a second key press must not answer a question that is not there yet.
async function alone(work) {
  if (document.body.ariaBusy === "true") return;
  document.body.ariaBusy = "true";
  try {
    await work();
    report(null);
  } catch (error) {
    report(error);
  }
  document.body.ariaBusy = "false";
}

function show(id) {
  for (const part of ["welcome", "trial", "end"]) $(part).hidden = part !== id;
}

async function load(number, at = 0) {
  trial = await askAs("/api/trial", { trial: number });
  $("bar").value = trial.total ? trial.done / trial.total : 1;
  if (trial.finished) {
    show("end");
    $("thanks").focus();
    return;
  }
  for (const key of PICTURES) {
    $(key).src = trial[key];
    $(key).onload = ({ target }) => target.classList.toggle("small", target.naturalHeight < 160);
  }
  await Promise.all(PICTURES.map((key) => $(key).decode()));
  for (const following of trial.next) for (const key of PICTURES) new Image().src = following[key];
  show("trial");
  const unanswered = trial.questions.findIndex(({ id }) => !(id in trial.given));
  showQuestion(number === -1 ? Math.max(unanswered, 0) : at);
}

function showQuestion(index) {
  question = index;
  const { id, text } = trial.questions[index];
  $("question").textContent = text;
  $("count").textContent = `${trial.number + 1} of ${trial.total}, question ${index + 1} of ${trial.questions.length}`;
  for (const button of document.querySelectorAll(".choice")) {
    button.classList.toggle("chosen", trial.given[id] === button.dataset.choice);
  }
  $("back").disabled = !trial.number && !index;
  shownAt = performance.now();
}

function choose(choice) {
  return alone(async () => {
    const { id } = trial.questions[question];
    const seconds = (performance.now() - shownAt) / 1000;
    await askAs("/api/answer", { trial: trial.number, question: id, choice, seconds });
    trial.given[id] = choice;
    if (question + 1 < trial.questions.length) return showQuestion(question + 1);
    return load(trial.number + 1);
  });
}

function back() {
  return alone(async () => {
    if (question) return showQuestion(question - 1);
    if (trial.number) return load(trial.number - 1, trial.questions.length - 1);
  });
}

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  name = $("name").value;
  alone(() => load(-1));
});
for (const button of document.querySelectorAll(".choice")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
$("back").addEventListener("click", back);
document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "1" || event.key === "2") choose(event.key === "1" ? "left" : "right");
  else if (event.key === "Backspace") back();
  else return;
  event.preventDefault();
});
$("name").focus();

// What every page needs: its elements, questions to the server, a place for what went wrong.

const TOKEN = document.querySelector("meta[name=token]").content;

export const $ = (id) => document.getElementById(id);

// `silence`: what is said where no answer comes.
export async function ask(path, values, silence = "The server does not answer; is it still running?") {
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Token": TOKEN },
      body: JSON.stringify(values),
    });
  } catch {
    throw new Error(silence);
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

// Shows an error, or null: takes the last one away.
export function report(error) {
  $("problem").textContent = error ? error.message : "";
  $("problem").hidden = !error;
}

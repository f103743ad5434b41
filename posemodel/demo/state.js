// What the page shows, for all of its parts, and how they ask the server.

import { report } from "/server.js";

export const state = {
  skeleton: null, gallery: null, limits: null, // as the server tells at the start
  people: [],
  person: null, // the one that is shown
  source: null, target: null, // poses
  probe: null, // [x, y] in the result
  view: "refined",
  pictures: {}, // by view
  changedAt: 0, // when the last change was made
};

export const aspectOf = (who) => who.width / who.height;

// Does one piece of work at a time, while an element is marked as busy. Wishes that come meanwhile become one: the newest.
export class Newest {
  constructor(element, work) {
    this.element = element;
    this.work = work;
    this.wanted = this.busy = false;
  }

  async request() {
    this.wanted = true;
    if (this.busy) return;
    this.busy = true;
    this.element.ariaBusy = "true";
    while (this.wanted) {
      this.wanted = false;
      try {
        await this.work();
        if (!this.wanted) report(null);
      } catch (error) {
        report(error);
      }
    }
    this.busy = false;
    this.element.ariaBusy = "false";
  }
}

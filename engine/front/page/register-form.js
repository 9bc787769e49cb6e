// CreateReplicationGroup: a target that exists is made known.

import { el } from "./dom.js";
import { busy, field, Outcome, tick } from "./form.js";

/** The form; `done(id)` is called once the group is there. */
export class RegisterForm {
  constructor(app, done) {
    const id = field("Name", { id: "new-id", required: true, maxlength: 40 });
    const primary = field(
      "Target's primary",
      { id: "new-primary", required: true, placeholder: "10.0.0.2:6379" },
      "The server that the data goes to. It must exist, and must be empty of others' writes.",
    );
    const tls = tick("TLS", { id: "new-tls" });
    const outcome = new Outcome();
    const button = el("button", { type: "submit", class: "primary" }, "Register");
    const buttons = el("div", { class: "buttons" }, button);
    const form = el("form", {}, id.node, primary.node, tls.node, buttons, outcome.node);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const name = id.input.value.trim();
      const parameters = [
        ["ReplicationGroupId", name],
        ["ReplicationGroupDescription", "Registered from the page"],
        ["PrimaryClusterId", primary.input.value.trim()],
      ];
      if (tls.input.checked) parameters.push(["TransitEncryptionEnabled", "true"]);
      const ask = () => app.call("CreateReplicationGroup", parameters);
      if (!(await busy(button, "Registering…", outcome, ask))) return;
      form.reset();
      this.node.open = false;
      done(name.toLowerCase());
    });
    const summary = el("summary", {}, "Register a target");
    this.node = el("details", { class: "card register" }, summary, form);
  }
}

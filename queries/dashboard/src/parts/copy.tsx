// A button that copies, and says that it did; a statement with such a button.
import { useState } from "preact/hooks";

export function Copy({ text, label }: { text: string; label: string }) {
  const [said, say] = useState("");
  const copy = async () => {
    const done = await navigator.clipboard.writeText(text).then(() => "Copied", () => "Select it by hand");
    say(done);
    setTimeout(() => say(""), 1500);
  };
  return <button type="button" class="quiet" onClick={copy} aria-live="polite">{said || label}</button>;
}

export function Statement({ text, label = "Copy" }: { text: string; label?: string }) {
  return (
    <div class="statement">
      <pre tabIndex={0}>{text}</pre>
      <Copy text={text} label={label} />
    </div>
  );
}

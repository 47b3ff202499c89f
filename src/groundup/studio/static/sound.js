// Sound in the browser: recorded, brought to a model's rate, cut to its loudest part, and written as WAV.

import { Problem } from "./api.js";

const LARGEST = 32767;
const HEAD_BYTES = 44;
const BINS = 160;
const AS_IT_IS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };

/** Record from the microphone, unchanged as training's recordings are, until `stop` is called; what comes of it is the samples at a rate. */
export async function record(rate) {
  if (!navigator.mediaDevices?.getUserMedia) throw new Problem("", { key: "micInsecure", fixKey: "micInsecureFix" });
  const source = await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS }).catch((error) => {
    const key = error.name === "NotAllowedError" ? "micRefused" : "micNone";
    throw new Problem("", { key, fixKey: `${key}Fix` });
  });
  const recorder = new MediaRecorder(source);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  const over = new Promise((done) => recorder.addEventListener("stop", done));
  recorder.start();
  const stop = () => recorder.state !== "inactive" && recorder.stop();
  const samples = over.then(() => {
    for (const track of source.getTracks()) track.stop(); // the browser's sign that it listens goes out
    return samplesOf(new Blob(parts, { type: recorder.mimeType }), rate);
  });
  return { stop, samples };
}

/** The samples of a sound file of any kind that the browser reads, mono, at a rate. Raises Problem for others. */
export async function samplesOf(file, rate) {
  try {
    const whole = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await file.arrayBuffer());
    // Contexts resample what they decode; several channels are mixed by one more.
    const mixer = new OfflineAudioContext(1, Math.max(1, whole.length), rate);
    const source = mixer.createBufferSource();
    source.buffer = whole;
    source.connect(mixer.destination);
    source.start();
    return (await mixer.startRendering()).getChannelData(0);
  } catch {
    throw new Problem("", { key: "noSound", fixKey: "noSoundFix" });
  }
}

/** The loudest part of samples that is so many long; all of them where they are fewer. */
export function loudest(samples, count) {
  if (samples.length <= count) return samples;
  let power = 0;
  let [best, start] = [-1, 0];
  for (let place = 0; place < samples.length; place += 1) {
    power += samples[place] ** 2 - (place >= count ? samples[place - count] ** 2 : 0);
    if (place >= count - 1 && power > best) [best, start] = [power, place - count + 1];
  }
  return samples.slice(start, start + count);
}

/** Samples in ±1 as a WAV file of one channel and 16 bits. */
export function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(HEAD_BYTES + 2 * samples.length));
  const text = (place, word) => [...word].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, view.byteLength - 8, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([place, value]) => view.setUint16(place, value, true));
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(HEAD_BYTES + 2 * i, Math.round(Math.max(-1, Math.min(1, value)) * LARGEST), true));
  return new Blob([view], { type: "audio/wav" });
}

/** How loud samples are along their length, from 0 to 1, in so many bins. */
export function loudness(samples, bins = BINS) {
  const width = Math.max(1, samples.length / bins);
  return Array.from({ length: bins }, (_, bin) => {
    let most = 0;
    for (let place = Math.floor(bin * width); place < Math.min(samples.length, (bin + 1) * width); place += 1) most = Math.max(most, Math.abs(samples[place]));
    return most;
  });
}

/** Let samples be heard. */
export async function play(samples, rate) {
  const context = new AudioContext();
  const buffer = context.createBuffer(1, Math.max(1, samples.length), rate);
  buffer.copyToChannel(Float32Array.from(samples), 0);
  const source = context.createBufferSource();
  source.buffer = buffer;
  source.connect(context.destination);
  source.addEventListener("ended", () => context.close());
  source.start();
}

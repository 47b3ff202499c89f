// What the page says, in each language.

export const LANGUAGES = { en: "English", zh: "中文" };

export const TEXTS = {
  en: {
    skip: "Skip to the content", models: "Models", server: "Server", figures: "Live figures",
    signOut: "Sign out", language: "Language", theme: "Appearance", auto: "System", light: "Light", dark: "Dark",
    loading: "Loading…", noModels: "No model is served.", home: "groundup playground",
    "task.chat": "Chat", "task.language_modeling": "Text", "task.text_classification": "Classes",
    "task.token_tagging": "Tags", "task.span_qa": "Answers in a text", "task.translation": "Translation",
    "task.embedding": "Similarity", "task.preference": "Chat", "task.other": "Model",
    "task.image_classification": "Pictures", "task.speech_commands": "Spoken words", "task.tabular": "Table rows",
    "task.next_item": "Recommendations", "task.click_prediction": "Clicks",
    pixels: "{width} × {height} pixels", seconds: "{time} s at {rate} kHz", items: "{count} items",
    "say.drawing": "Draw something, and what it is taken for will be shown here.", surface: "Drawing surface", seen: "What the model sees: {width} × {height} pixels",
    drawHint: "With the keyboard: arrows move the pen, Space puts it down or lifts it, Delete wipes the surface.",
    centred: "Centre and fit the drawing, as handwritten digits are", wipe: "Wipe", chooseImage: "Choose a picture",
    penDown: "Pen down", penUp: "Pen up", takenFor: "Taken for {label}",
    "say.photo": "What the picture shows will be said here.", dropHint: "Drop or paste a picture here, or",
    "say.speaking": "What was said will be shown here.", wave: "How loud the recording is from its beginning to its end",
    record: "Record", stopRecording: "Stop", play: "Listen", chooseSound: "Choose a recording",
    speakHint: "The loudest {time} s are heard, at {rate} kHz.",
    micInsecure: "Browsers let only secure pages listen.", micInsecureFix: "Open the page at localhost or by https, or choose a recording.",
    micRefused: "The microphone may not be used.", micRefusedFix: "Allow it in the browser's address bar, or choose a recording.",
    micNone: "There is no microphone that can be used.", micNoneFix: "Plug one in, or choose a recording.",
    noSound: "This is no sound that the browser can read.", noSoundFix: "Choose a WAV or FLAC file.",
    "say.recommending": "Choose a few items that somebody liked: what may come next will be shown here.",
    search: "Look for an item", searchHint: "{count} items. Five are a good beginning; the newest comes last.", picked: "Chosen items",
    foundItems: "{count} found. Arrows choose, Enter takes.", take: "Add {name}", leave: "Remove {name}", unknownItems: "Not known to this model: {names}",
    tableHint: "The values are usual ones; an empty field is a missing value.",
    parameters: "{count} parameters", context: "{count} tokens of context", digest: "digest {digest}", adapter: "adapter of {model}",
    compare: "Compare with", nobody: "nothing", unknownModel: "There is no model {name} here.",
    message: "Message", prompt: "Text to continue", send: "Send", continue: "Continue", stop: "Stop", clear: "Start over",
    sendHint: "Enter sends, Shift + Enter begins a line.", you: "You", begun: "You wrote", thinking: "Waiting for the first token",
    offer: "{text}", "say.chat": "What would you like to ask?", "say.text": "Begin a text, and the model continues it.",
    conversation: "Conversation with {model}", answerDone: "{model} has answered.",
    "try.chat": ["Explain gravity to a child.", "Name three uses for an old newspaper.", "Write a haiku about autumn rain."],
    "try.text": ["Once upon a time, in a small town by the sea,", "def read_lines(path):", "The most important thing about science is"],
    settings: "Settings", system: "Instructions to the model", systemHint: "Read before the conversation.",
    temperature: "Temperature", temperatureHint: "0 always takes the likeliest token.", topP: "Top p", topK: "Top k",
    topKHint: "0 keeps all tokens.", maxTokens: "Longest answer", seed: "Seed", seedHint: "The same seed gives the same answer.",
    random: "random", stops: "Stop at", stopsHint: "Texts separated by |.", repetition: "Repetition penalty", reset: "Defaults",
    shade: "Shade tokens by how unlikely they were",
    tokensHelp: "Answer. Left and right arrows go through its tokens and say how likely each was.",
    tokenSays: "{token}, {share}. {place} of {count}.", tokenOf: "token {place} of {count}",
    several: "{count} tokens make this character",
    "end.stop": "complete", "end.length": "cut at the longest answer", "end.cancelled": "stopped", "end.tool_calls": "calls a function",
    summary: "{tokens} tokens · {speed} tokens/s · first after {first}", curl: "The same with curl", copy: "Copy", copied: "Copied",
    input: "Text", second: "Second text", passage: "Passage", question: "Question", source: "Text to translate", lines: "Texts, one a line",
    classify: "Classify", tag: "Tag", find: "Find the answer", translate: "Translate", measure: "Compare",
    runHint: "Ctrl + Enter", example: "Example", results: "Results of {model}",
    "say.rows": "The answer will be shown here.", more: "{count} more classes",
    noSpans: "Nothing was found in this text.", noAnswer: "The passage does not hold an answer, says the model.",
    confidence: "Confidence {share}", answerIs: "Answer", took: "{time} s", number: "Predicted number",
    none: "none of the classes",
    "eg.text": "The new phone is a joy to use, and its battery lasts two days.", "eg.second": "I like this phone very much.",
    "eg.tokens": "Mary Anning found the first plesiosaur at Lyme Regis in 1823.",
    "eg.passage": "Mary Anning lived in Lyme Regis. In 1823 she found the first complete skeleton of a plesiosaur, and museums in London bought her fossils.",
    "eg.question": "When was the first plesiosaur found?", "eg.source": "The library is closed on Mondays.",
    "eg.lines": "How do I change my password?\nI cannot sign in to my account.\nWhen will my parcel arrive?\nWhere is my order?\nThe weather is fine today.",
    similarity: "Cosine similarity of each two texts", nearest: "Nearest pairs", atLeastTwo: "Give at least two texts, one a line.",
    atMost: "{count} texts are too many to show; 24 at most.", text: "Text {number}",
    "say.figures": "What the server says of itself at /metrics, every few seconds.", live: "Live",
    mayNot: "The key you signed in with may not read the server's figures.", mayNotFix: "Use one with the scope metrics or admin.",
    mayNotInfer: "The key you signed in with may not use models.", mayNotInferFix: "Use one with the scope infer.",
    throughput: "Tokens per second", running: "Requests running", waiting: "{count} waiting", first: "Time to first token",
    between: "Time between tokens", median: "median · p99 {most}", lately: "over the last {time} s", cache: "Cache in use",
    setBack: "{count} requests set back for room", prefixes: "Prompts found in the cache", prefixNote: "{found} of {asked} tokens", replies: "Replies", refused: "{refused} refused, {failed} failed",
    memory: "Memory of the engines", engines: "{ready} of {count} ready, {restarts} restarts", noSample: "nothing yet",
    model: "Model", task: "Task", requests: "Requests", read: "Tokens read", written: "Tokens written", perModel: "By model, since the start",
    unreachable: "The server does not answer.", signedOut: "You are signed out. Load the page again to sign in.",
    failed: "The server answered with status {status}.", cutOff: "The answer was cut off.",
  },
  zh: {
    skip: "跳到正文", models: "模型", server: "服务", figures: "实时指标",
    signOut: "退出登录", language: "语言", theme: "外观", auto: "跟随系统", light: "浅色", dark: "深色",
    loading: "正在加载…", noModels: "目前没有提供任何模型。", home: "groundup 体验页",
    "task.chat": "对话", "task.language_modeling": "续写", "task.text_classification": "分类",
    "task.token_tagging": "标注", "task.span_qa": "阅读问答", "task.translation": "翻译",
    "task.embedding": "相似度", "task.preference": "对话", "task.other": "模型",
    "task.image_classification": "图片", "task.speech_commands": "语音词", "task.tabular": "表格行",
    "task.next_item": "推荐", "task.click_prediction": "点击",
    pixels: "{width} × {height} 像素", seconds: "{time} 秒，{rate} kHz", items: "{count} 个条目",
    "say.drawing": "画点什么，识别结果会显示在这里。", surface: "画板", seen: "模型看到的图像：{width} × {height} 像素",
    drawHint: "使用键盘：方向键移动画笔，空格键落笔或抬笔，Delete 键清空画板。",
    centred: "像手写数字那样居中并缩放", wipe: "清空", chooseImage: "选择图片",
    penDown: "已落笔", penUp: "已抬笔", takenFor: "识别为 {label}",
    "say.photo": "图片的内容会显示在这里。", dropHint: "把图片拖放或粘贴到这里，或者",
    "say.speaking": "听到的内容会显示在这里。", wave: "录音从头到尾的响度",
    record: "录音", stopRecording: "停止", play: "播放", chooseSound: "选择录音",
    speakHint: "取其中最响的 {time} 秒，采样率 {rate} kHz。",
    micInsecure: "浏览器只允许安全页面使用麦克风。", micInsecureFix: "请通过 localhost 或 https 打开本页，或选择一段录音。",
    micRefused: "麦克风被禁止使用。", micRefusedFix: "请在浏览器地址栏中允许，或选择一段录音。",
    micNone: "没有可用的麦克风。", micNoneFix: "请接上麦克风，或选择一段录音。",
    noSound: "浏览器读不了这段声音。", noSoundFix: "请选择 WAV 或 FLAC 文件。",
    "say.recommending": "选几个某人喜欢的条目，接下来可能喜欢的会显示在这里。",
    search: "查找条目", searchHint: "共 {count} 个条目。先选五个即可，最新的排在最后。", picked: "已选条目",
    foundItems: "找到 {count} 个。方向键选择，回车确认。", take: "添加 {name}", leave: "移除 {name}", unknownItems: "该模型不认识：{names}",
    tableHint: "所填为常见值；留空表示缺失。",
    parameters: "{count} 个参数", context: "上下文 {count} 个词元", digest: "摘要 {digest}", adapter: "{model} 的适配器",
    compare: "对照模型", nobody: "无", unknownModel: "这里没有名为 {name} 的模型。",
    message: "消息", prompt: "要续写的文本", send: "发送", continue: "续写", stop: "停止", clear: "重新开始",
    sendHint: "回车发送，Shift + 回车换行。", you: "你", begun: "你写的", thinking: "正在等待第一个词元",
    offer: "{text}", "say.chat": "想问点什么？", "say.text": "写个开头，模型会接着写下去。",
    conversation: "与 {model} 的对话", answerDone: "{model} 已回答。",
    "try.chat": ["给孩子解释什么是重力。", "旧报纸有哪三种用途？", "写一首关于秋雨的短诗。"],
    "try.text": ["从前，海边的小镇上", "def read_lines(path):", "科学最重要的是"],
    settings: "设置", system: "给模型的指示", systemHint: "模型在对话之前读到。",
    temperature: "温度", temperatureHint: "0 表示总取最可能的词元。", topP: "Top p", topK: "Top k",
    topKHint: "0 表示保留全部词元。", maxTokens: "最长回答", seed: "随机种子", seedHint: "种子相同，回答相同。",
    random: "随机", stops: "遇到即停", stopsHint: "多个文本用 | 分隔。", repetition: "重复惩罚", reset: "恢复默认",
    shade: "按词元的意外程度着色",
    tokensHelp: "回答。用左右方向键逐个查看词元及其概率。",
    tokenSays: "{token}，{share}。第 {place} 个，共 {count} 个。", tokenOf: "第 {place} 个词元，共 {count} 个",
    several: "这个字符由 {count} 个词元组成",
    "end.stop": "回答完整", "end.length": "达到最长回答，已截断", "end.cancelled": "已停止", "end.tool_calls": "调用函数",
    summary: "{tokens} 个词元 · 每秒 {speed} 个 · {first} 后开始", curl: "用 curl 发送同样的请求", copy: "复制", copied: "已复制",
    input: "文本", second: "第二段文本", passage: "文章", question: "问题", source: "要翻译的文本", lines: "文本，每行一条",
    classify: "分类", tag: "标注", find: "查找答案", translate: "翻译", measure: "比较",
    runHint: "Ctrl + 回车", example: "示例", results: "{model} 的结果",
    "say.rows": "结果将显示在这里。", more: "还有 {count} 个类别",
    noSpans: "这段文本中没有找到内容。", noAnswer: "模型认为文章中没有答案。",
    confidence: "置信度 {share}", answerIs: "答案", took: "{time} 秒", number: "预测值",
    none: "不属于任何类别",
    "eg.text": "这款新手机用起来很愉快，电池能撑两天。", "eg.second": "我非常喜欢这款手机。",
    "eg.tokens": "徐霞客于1613年从江苏江阴出发，游历了天台山和雁荡山。",
    "eg.passage": "徐霞客是江苏江阴人。1613年他游历了天台山和雁荡山，后来写成了《徐霞客游记》。",
    "eg.question": "徐霞客哪一年游历了天台山？", "eg.source": "图书馆星期一不开放。",
    "eg.lines": "怎么修改密码？\n我登录不了自己的账号。\n包裹什么时候能到？\n我的订单在哪里？\n今天天气很好。",
    similarity: "每两条文本的余弦相似度", nearest: "最相近的几对", atLeastTwo: "请至少给出两条文本，每行一条。",
    atMost: "{count} 条太多，无法显示；最多 24 条。", text: "文本 {number}",
    "say.figures": "每隔几秒读取一次服务在 /metrics 给出的数据。", live: "实时",
    mayNot: "你登录所用的密钥无权读取服务指标。", mayNotFix: "请换用带有 metrics 或 admin 权限的密钥。",
    mayNotInfer: "你登录所用的密钥无权使用模型。", mayNotInferFix: "请换用带有 infer 权限的密钥。",
    throughput: "每秒词元数", running: "正在处理的请求", waiting: "{count} 个在等待", first: "首个词元时间",
    between: "词元间隔", median: "中位数 · p99 {most}", lately: "最近 {time} 秒", cache: "缓存占用",
    setBack: "{count} 个请求因空间不足而重算", prefixes: "提示缓存命中", prefixNote: "{asked} 个词元中的 {found} 个", replies: "回复", refused: "拒绝 {refused} 个，失败 {failed} 个",
    memory: "引擎内存", engines: "{count} 个引擎中 {ready} 个就绪，重启 {restarts} 次", noSample: "暂无",
    model: "模型", task: "任务", requests: "请求", read: "读入词元", written: "生成词元", perModel: "各模型（自启动以来）",
    unreachable: "服务没有响应。", signedOut: "登录已失效，请重新加载页面并登录。",
    failed: "服务返回状态 {status}。", cutOff: "回答中断了。",
  },
};

let chosen = remembered() ?? firstKnown(navigator.languages ?? [navigator.language]) ?? "en";

/** The language that is spoken. */
export function language() {
  return chosen;
}

/** Speak a language from now on, and remember it in this browser. */
export function choose(name) {
  chosen = name in TEXTS ? name : "en";
  try {
    localStorage.setItem("groundup.language", chosen);
  } catch {
    // A browser that keeps nothing asks its own settings again next time.
  }
}

/** A text by its key, with values in place of {names}. */
export function say(key, values = {}) {
  const text = TEXTS[chosen][key] ?? TEXTS.en[key];
  if (text === undefined) console.error(`there is no text ${key}`);
  return typeof text === "string" ? text.replace(/\{(\w+)\}/g, (whole, name) => written(values[name], whole)) : text ?? key;
}

/** Whether there is a text of a key. */
export function isSaid(key) {
  return key in TEXTS.en;
}

/** A count as the language writes it, shortened from 10,000 on: 135M, 1.4亿. */
export function count(number) {
  const options = number < 10000 ? {} : { notation: "compact", maximumFractionDigits: 1 };
  return new Intl.NumberFormat(LOCALES[chosen], options).format(number);
}

/** A number with so many digits behind the point. */
export function decimal(number, digits = 1) {
  return new Intl.NumberFormat(LOCALES[chosen], { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(number);
}

/** A share from 0 to 1 in per cent; small ones keep a digit that is not zero. */
export function percent(share) {
  if (share > 0 && share < 0.0001) return "< 0.01%";
  const digits = share >= 0.1 || share === 0 ? 0 : share >= 0.01 ? 1 : 2;
  const shown = share > 0.995 && share < 1 ? Math.min(share, 0.9999) : share;
  return `${decimal(shown * 100, shown > 0.99 && shown < 1 ? 2 : digits)}%`;
}

/** Seconds, in milliseconds where they are few. */
export function seconds(value) {
  return value < 1 ? `${decimal(value * 1000, value < 0.01 ? 1 : 0)} ms` : `${decimal(value, 1)} s`;
}

/** The languages as HTML and numbers name them. */
export const LOCALES = { en: "en", zh: "zh-CN" };

/** A value of a text: a function is asked each time, so that numbers follow the language too. */
function written(value, otherwise) {
  if (value === undefined) return otherwise;
  return typeof value === "function" ? value() : String(value);
}

function remembered() {
  try {
    const name = localStorage.getItem("groundup.language");
    return name in TEXTS ? name : null;
  } catch {
    return null;
  }
}

function firstKnown(names) {
  return names.map((name) => name.toLowerCase().split("-")[0]).find((name) => name in TEXTS);
}

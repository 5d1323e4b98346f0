/** The page's words in two languages. An element names its word and follows the language from then on. */

const WORDS = {
  en: {
    title: "AutoGLM playground",
    tagline: "A phone assistant that reads, sees and hears",
    otherLanguage: "中文",
    fresh: "New conversation",
    screen: "Screenshot",
    drop: "Drop, paste or choose a screenshot",
    choose: "Choose a screenshot",
    conversation: "Conversation",
    welcome: "What should the phone do?",
    howTo: "Show a screenshot, speak or type. Where the answer taps, a mark appears on the screen.",
    example1: "Who are you?",
    example2: "What can you do?",
    example3: "打开相机",
    message: "Message",
    ask: "Ask, or say what to do",
    keys: "Enter sends · Shift+Enter starts a line",
    record: "Record speech",
    recording: "Stop recording",
    upload: "Upload a recording",
    speech: "Recording",
    remove: "Remove",
    send: "Send",
    stop: "Stop",
    model: "Model",
    thinking: "Thinking",
    more: "More settings",
    temperature: "Temperature",
    maxTokens: "Max tokens",
    noLimit: "no limit",
    key: "API key",
    keyNote: "Needed where the server asks for one. It stays in this tab and is gone when you close it.",
    reasoning: "Reasoning",
    figures: "Stages",
    queue: "queue",
    fetch: "fetch",
    image: "image",
    audio: "speech",
    text: "text",
    prefill: "prefill",
    decode: "decode",
    gates: "Gates",
    miss: "cache miss",
    local: "cached",
    redis: "cached in Redis",
    shared: "shared",
    tokensIn: "tokens in",
    tokensCached: "cached",
    tokensOut: "out",
    stopped: "Stopped.",
    unreachable: "The server cannot be reached.",
    broke_off: "The answer broke off before its end.",
    authentication_error: "This server asks for an API key that it knows. Enter it under API key.",
    request_too_large: "That is more than this server takes at once.",
    rate_limit_exceeded: "That was one request too many for now.",
    modality_unavailable: "The part of the server that understands this is away. Text may still be answered.",
    upstream_unavailable: "The model is away.",
    deadline_exceeded: "The answer took too long.",
    internal: "Something went wrong in the server.",
    retryAfter: "Try again in {} s.",
    noImages: "This model reads no images now.",
    noSpeech: "This model hears no speech now.",
    noMicrophone: "No microphone here: it needs permission, and this page opened over https or on localhost.",
    unreadable: "This is no image (PNG, JPEG, WebP) and no recording that the browser can read.",
    docs: "API reference",
    models: "Models",
    health: "Health",
    metrics: "Metrics",
    finish: "Done",
  },
  zh: {
    title: "AutoGLM 体验台",
    tagline: "会读、会看、会听的手机助手",
    otherLanguage: "English",
    fresh: "新对话",
    screen: "屏幕截图",
    drop: "拖入、粘贴或选择一张截图",
    choose: "选择截图",
    conversation: "对话",
    welcome: "想让手机做什么？",
    howTo: "放上截图，说话或打字。回答点击哪里，屏幕上就标出哪里。",
    example1: "你是谁？",
    example2: "你能做什么？",
    example3: "打开相机",
    message: "消息",
    ask: "提问，或说出要做的事",
    keys: "Enter 发送 · Shift+Enter 换行",
    record: "录音",
    recording: "结束录音",
    upload: "上传录音",
    speech: "录音",
    remove: "移除",
    send: "发送",
    stop: "停止",
    model: "模型",
    thinking: "思考",
    more: "更多设置",
    temperature: "温度",
    maxTokens: "最多 token 数",
    noLimit: "不限",
    key: "API 密钥",
    keyNote: "服务器要求时才需要。只保存在当前标签页，关闭即清除。",
    reasoning: "思考过程",
    figures: "各阶段用时",
    queue: "排队",
    fetch: "读取",
    image: "图像",
    audio: "语音",
    text: "文字",
    prefill: "预填充",
    decode: "解码",
    gates: "门控",
    miss: "缓存未命中",
    local: "已缓存",
    redis: "Redis 缓存",
    shared: "共用结果",
    tokensIn: "个输入 token",
    tokensCached: "个已缓存",
    tokensOut: "个输出",
    stopped: "已停止。",
    unreachable: "无法连接服务器。",
    broke_off: "回答在结束之前中断了。",
    authentication_error: "服务器要求有效的 API 密钥，请在「API 密钥」处填写。",
    request_too_large: "超出了服务器一次能接收的大小。",
    rate_limit_exceeded: "请求太多，已超出限额。",
    modality_unavailable: "服务器中理解这种输入的部分暂时不在，文字或许仍能回答。",
    upstream_unavailable: "模型暂时不在。",
    deadline_exceeded: "回答用时太久。",
    internal: "服务器内部出错。",
    retryAfter: "请在 {} 秒后再试。",
    noImages: "这个模型现在不能看图。",
    noSpeech: "这个模型现在不能听语音。",
    noMicrophone: "无法使用麦克风：需要授权，并且页面要通过 https 或 localhost 打开。",
    unreadable: "这不是图片（PNG、JPEG、WebP），也不是浏览器能读取的录音。",
    docs: "接口文档",
    models: "模型",
    health: "健康状态",
    metrics: "指标",
    finish: "完成",
    Tap: "点击",
    "Double Tap": "双击",
    "Long Press": "长按",
    Swipe: "滑动",
    Type: "输入",
    Launch: "启动",
    Back: "返回",
    Home: "回到主屏幕",
    Wait: "等待",
  },
};

let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

/** Return a word in the present language; what is no word stands for itself. */
const word = (key) => (Object.hasOwn(WORDS[language], key) ? WORDS[language][key] : key);

/** Tell whether there are words for this. */
export const speaks = (key) => Object.hasOwn(WORDS.en, key);

/** Make an element say a word, now and when the language changes, with `count` for its {}; return the element. */
export function say(element, key, count = "") {
  element.dataset.text = key;
  element.dataset.count = count;
  element.textContent = word(key).replace("{}", count);
  return element;
}

/** Name an element for screen readers, and a button for a pointer that rests on it; return the element. */
export function name(element, key) {
  element.dataset.label = key;
  if (element instanceof HTMLButtonElement) element.title = word(key);
  element.setAttribute("aria-label", word(key));
  return element;
}

/** Speak the language chosen, in the whole page. */
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = word("title");
  for (const element of document.querySelectorAll("[data-text]")) {
    say(element, element.dataset.text, element.dataset.count);
  }
  for (const element of document.querySelectorAll("[data-label]")) name(element, element.dataset.label);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = word(element.dataset.hint);
}

/** Change to the other language, and remember it. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
  translate();
}

package servers

// For tests.
const LastWait = lastWait

var Sentence = sentence

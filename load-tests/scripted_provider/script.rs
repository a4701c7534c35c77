//! What a provider is to answer, as the name of a model says it.

use std::time::Duration;

/// The words, for the program's help.
pub const HELP: &str = "\
The name of the model, or the header x-script, is a list of words joined by dots. A number follows its word after a dash.
A name whose first word is none of these is a real model's, and means `plain`.

  plain               a sentence
  events-N            text in N pieces
  bytes-N             text that makes a whole answer N bytes long
  utf8                text of characters of several bytes
  tools               calls every tool that the request has, at once; after their results, says them
  pieces-N            arguments of tools in N pieces
  json                a document that fits the schema of the request, or of the tool that has to be called
  echo                what the request holds, told in the same words for every dialect
  reasoning           a thought before the answer, with its signature
  filtered, length    ends as refused by a filter, or for its length
  input-N, output-N, cached-N, thoughts-N   usage; input holds cached, output holds thoughts
  no-usage            tells no usage
  delay-MS            waits before the answer begins
  interval-MS         waits between the events of a stream
  separate            writes each event of a stream by itself, without waiting
  split-N             HTTP chunks of N bytes, wherever they fall
  status-N            an error; retry-after-S adds the header
  error-first         an error in an answer with status 200; error-midway, after half of the content
  garbage-first       what is no JSON; garbage-midway
  invalid-utf8        bytes that are no UTF-8 within the text
  wrong-type          calls its answer text/html
  giant-N             one event, or answer, of N MiB
  empty               an answer without a byte
  stall               says nothing; stall-first, nothing after the head; stall-midway
  close, close-first, close-midway, reset, reset-first, reset-midway   likewise, ending the connection
  endless             never stops writing text; endless-first, comments";

/// What to answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    pub content: Content,
    /// Pieces that text comes in.
    pub events: Option<usize>,
    pub bytes: Option<usize>,
    pub giant: Option<usize>,
    /// Pieces that the arguments of each tool come in.
    pub pieces: Option<usize>,
    pub reasoning: bool,
    pub ending: Ending,
    pub usage: Option<Usage>,
    pub delay: Option<Duration>,
    pub interval: Option<Duration>,
    pub separate: bool,
    pub split: Option<usize>,
    pub status: Option<u16>,
    pub retry_after: Option<u64>,
    pub invalid_utf8: bool,
    pub wrong_type: bool,
    pub fault: Option<(Fault, At)>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Content {
    #[default]
    Plain,
    Utf8,
    Tools,
    Json,
    Echo,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    #[default]
    Natural,
    Filtered,
    Length,
}

/// Tokens: those of the cache are part of `input`, those of thoughts of `output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
    pub cached: u64,
    pub thoughts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Error,
    Garbage,
    Empty,
    Stall,
    Close,
    Reset,
    Endless,
}

/// When a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Before there is a head.
    Once,
    /// After the head, before any content.
    First,
    /// After half of the content.
    Midway,
}

const USAGE: Usage = Usage { input: 20, output: 10, cached: 0, thoughts: 0 };

impl Script {
    /// Reads the name of a model. The error is for the caller.
    pub fn read(name: &str) -> Result<Script, String> {
        let mut script = Script { usage: Some(USAGE), ..Script::default() };
        for (i, word) in name.split('.').enumerate() {
            match script.take(word) {
                true => {}
                // A real model's name.
                false if i == 0 => return Ok(Script { usage: Some(USAGE), ..Script::default() }),
                false => return Err(format!("`{word}` is no word of a script")),
            }
        }
        Ok(script)
    }

    /// Whether the answer depends on more of the request than its head.
    pub fn wants_request(&self) -> bool {
        matches!(self.content, Content::Tools | Content::Json | Content::Echo)
    }

    /// Whether nothing happens but that bytes are written.
    pub fn is_only_bytes(&self) -> bool {
        let timed = self.delay.is_some() || self.interval.is_some() || self.separate || self.split.is_some();
        !timed && matches!(self.fault, None | Some((Fault::Error | Fault::Garbage | Fault::Empty, _)))
    }

    /// False if it is no word.
    fn take(&mut self, word: &str) -> bool {
        let number = word.rsplit_once('-').and_then(|(word, number)| Some((word, number.parse::<u64>().ok()?)));
        match number {
            Some((word, number)) => self.take_number(word, number),
            None => self.take_word(word),
        }
    }

    fn take_number(&mut self, word: &str, number: u64) -> bool {
        let count = usize::try_from(number).ok();
        let usage = self.usage.get_or_insert(USAGE);
        match word {
            "events" => self.events = count,
            "bytes" => self.bytes = count,
            "giant" => self.giant = count.map(|mib| mib << 20),
            "pieces" => self.pieces = count,
            "split" => self.split = count.filter(|count| *count > 0),
            "input" => usage.input = number,
            "output" => usage.output = number,
            "cached" => usage.cached = number,
            "thoughts" => usage.thoughts = number,
            "delay" => self.delay = Some(Duration::from_millis(number)),
            "interval" => self.interval = Some(Duration::from_millis(number)),
            "status" => self.status = u16::try_from(number).ok().filter(|status| (400..600).contains(status)),
            "retry-after" => self.retry_after = Some(number),
            _ => return false,
        }
        true
    }

    fn take_word(&mut self, word: &str) -> bool {
        match word {
            "plain" => {}
            "utf8" => self.content = Content::Utf8,
            "tools" => self.content = Content::Tools,
            "json" => self.content = Content::Json,
            "echo" => self.content = Content::Echo,
            "reasoning" => self.reasoning = true,
            "filtered" => self.ending = Ending::Filtered,
            "length" => self.ending = Ending::Length,
            "no-usage" => self.usage = None,
            "separate" => self.separate = true,
            "invalid-utf8" => self.invalid_utf8 = true,
            "wrong-type" => self.wrong_type = true,
            "empty" => self.fault = Some((Fault::Empty, At::First)),
            _ => match fault(word) {
                Some(fault) => self.fault = Some(fault),
                None => return false,
            },
        }
        true
    }
}

fn fault(word: &str) -> Option<(Fault, At)> {
    let (word, at) = match word.rsplit_once('-') {
        Some((word, "first")) => (word, At::First),
        Some((word, "midway")) => (word, At::Midway),
        _ => (word, At::Once),
    };
    let fault = match word {
        "error" if at != At::Once => Fault::Error,
        "garbage" if at != At::Once => Fault::Garbage,
        "stall" => Fault::Stall,
        "close" => Fault::Close,
        "reset" => Fault::Reset,
        "endless" => return Some((Fault::Endless, if at == At::Once { At::Midway } else { at })),
        _ => return None,
    };
    Some((fault, at))
}

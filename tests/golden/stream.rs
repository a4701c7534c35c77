//! Feeds a provider's stream to its format, whole and in pieces, and says what every stream has to be like.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use headgate::ai::chat::ChatEvent;
use headgate::ai::formats::Provider;

use crate::expected::Case;
use crate::stable::stable;
use crate::text;

/// Up to this length a stream is cut everywhere; longer ones would take minutes.
const CUT_EVERYWHERE: usize = 4096;

pub fn bytes(case: &Case) -> Vec<u8> {
    match case.extension.as_str() {
        "b64" => {
            let letters: Vec<u8> = case.content.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
            STANDARD.decode(letters).expect("an event stream in base64")
        }
        _ => case.content.clone(),
    }
}

/// What the pieces mean, up to the stream's end.
pub fn events(provider: &dyn Provider, pieces: &[&[u8]]) -> Vec<ChatEvent> {
    let (mut deframer, mut decoder, mut events) = (provider.framing().deframer(), provider.decoder(), Vec::new());
    for piece in pieces {
        if deframer.push(piece, &mut |frame| decoder.decode(&frame, &mut events)).is_err() {
            break;
        }
    }
    // A last frame that is broken off is not read; the decoder tells that the end is missing.
    let _ = deframer.finish(&mut |frame| decoder.decode(&frame, &mut events));
    decoder.finish(&mut events);
    events
}

/// Holds a decoder to the contract of [`ChatEvent`].
pub fn coherent(events: &[ChatEvent]) -> Result<(), String> {
    let (mut open, mut next) = (BTreeSet::new(), 0);
    for (at, event) in events.iter().enumerate() {
        let last = at + 1 == events.len();
        let wrong = match event {
            ChatEvent::Error(_) => !last,
            ChatEvent::Start { .. } => at != 0,
            _ if at == 0 => true,
            ChatEvent::PartStart { part, .. } => {
                next += 1;
                !open.insert(*part) || *part != next - 1
            }
            ChatEvent::Delta { part, .. } | ChatEvent::Signature { part, .. } => !open.contains(part),
            ChatEvent::PartEnd { part } => !open.remove(part),
            ChatEvent::End => !last || !open.is_empty(),
            ChatEvent::Stop { .. } | ChatEvent::Usage(_) => false,
        };
        if wrong {
            return Err(format!("event {at} is out of place: {event:?}"));
        }
    }
    match events.last() {
        Some(ChatEvent::End | ChatEvent::Error(_)) => Ok(()),
        last => Err(format!("a stream ends with End or Error, not with {last:?}")),
    }
}

/// The same bytes mean the same in other pieces, and a part of them means something coherent.
pub fn same_wherever_cut(provider: &dyn Provider, bytes: &[u8], whole: &[ChatEvent]) -> Result<(), String> {
    let input = text(bytes);
    let want = shown(whole, &input);
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    if shown(&events(provider, &single), &input) != want {
        return Err("read byte by byte it means something else".into());
    }
    let cuts = if bytes.len() <= CUT_EVERYWHERE { bytes.len() } else { 0 };
    for cut in 1..cuts {
        let (before, after) = bytes.split_at(cut);
        if shown(&events(provider, &[before, after]), &input) != want {
            return Err(format!("cut at byte {cut} it means something else"));
        }
        coherent(&events(provider, &[before])).map_err(|wrong| format!("broken off at byte {cut}: {wrong}"))?;
    }
    Ok(())
}

fn shown(events: &[ChatEvent], input: &str) -> String {
    stable(&format!("{events:?}"), input)
}

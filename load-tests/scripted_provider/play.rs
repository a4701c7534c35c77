//! Making an answer by its script, and sending it with everything that goes wrong with it.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::asked::Asked;
use super::said::{Dialect, Event, Prepared, Said};
use super::script::{At, Fault, Script};

const FAILED: &str = "the script says that this fails";
/// Never a whole document, whatever stands before or after it.
const GARBAGE: &str = "{ \"garbage\": ]";

/// Makes the answer.
pub fn prepare(
    dialect: &dyn Dialect,
    script: &Script,
    model: &str,
    asked: Option<&Asked>,
    streamed: bool,
    stream_usage: bool,
) -> Prepared {
    if let Some(status) = script.status {
        let body = dialect.error(status, FAILED).to_string();
        return Prepared { status, content_type: JSON, pieces: vec![body.into()], half: 0, streamed: false };
    }
    let mut said = Said::of(script, model, asked, stream_usage);
    let content_type = match (script.wrong_type, streamed) {
        (true, _) => "text/html",
        (false, true) => "text/event-stream; charset=utf-8",
        (false, false) => JSON,
    };
    let mut prepared = match streamed {
        true => stream(dialect, script, &said),
        false => {
            if let Some(wanted) = script.bytes {
                let length = dialect.whole(&said).to_string().len();
                said.lengthen(wanted.saturating_sub(length));
            }
            whole(dialect, script, &said)
        }
    };
    if script.invalid_utf8 {
        // Within the text: each event still begins and ends as it should.
        for piece in &mut prepared.pieces {
            if let Some(at) = memchr::memmem::find(piece, b"Hello") {
                let mut broken = BytesMut::from(&piece[..]);
                broken[at..at + 2].copy_from_slice(b"\xff\xe2");
                *piece = broken.freeze();
            }
        }
    }
    Prepared { content_type, ..prepared }
}

const JSON: &str = "application/json";

fn whole(dialect: &dyn Dialect, script: &Script, said: &Said<'_>) -> Prepared {
    let body = dialect.whole(said).to_string();
    let body = match script.fault {
        Some((Fault::Error, _)) => dialect.error(500, FAILED).to_string(),
        Some((Fault::Garbage, At::Midway)) => format!("{}{GARBAGE}", &body[..half_of(&body)]),
        Some((Fault::Garbage, _)) => GARBAGE.to_owned(),
        Some((Fault::Empty, _)) => String::new(),
        _ => body,
    };
    let half = half_of(&body);
    let (first, rest) = body.split_at(half);
    let pieces = vec![first.to_owned().into(), rest.to_owned().into()];
    // What never ends has no length.
    let streamed = matches!(script.fault, Some((Fault::Endless, _)));
    Prepared { status: 200, content_type: JSON, pieces, half: 1, streamed }
}

fn half_of(text: &str) -> usize {
    let mut half = text.len() / 2;
    while !text.is_char_boundary(half) {
        half += 1;
    }
    half
}

fn stream(dialect: &dyn Dialect, script: &Script, said: &Said<'_>) -> Prepared {
    let mut events = dialect.stream(said);
    let contents: Vec<usize> = (0..events.len()).filter(|i| events[*i].content).collect();
    // After the first half of what is said, and after its first piece in any case.
    let half = contents.get(contents.len().saturating_sub(1) / 2).map_or(events.len(), |at| at + 1);
    let garbage = || Event { bytes: format!("data: {GARBAGE}\n\n").into_bytes(), content: false };
    match script.fault {
        Some((Fault::Empty, _)) => events.clear(),
        Some((fault @ (Fault::Error | Fault::Garbage), at)) => {
            events.truncate(if at == At::Midway { half } else { 0 });
            events.push(if fault == Fault::Error { dialect.error_event(500, FAILED) } else { garbage() });
        }
        _ => {}
    }
    let pieces: Vec<Bytes> = events.into_iter().map(|event| event.bytes.into()).collect();
    Prepared { status: 200, content_type: "", half: half.min(pieces.len()), pieces, streamed: true }
}

/// The whole exchange as bytes, where nothing has to be waited for.
pub fn bytes(prepared: &Prepared, script: &Script) -> Bytes {
    let mut out = BytesMut::new();
    head(prepared, script, &mut out);
    for piece in &prepared.pieces {
        put(prepared, piece, &mut out);
    }
    end(prepared, &mut out);
    out.freeze()
}

/// Sends the answer as its script says; false if the connection is over.
pub async fn play(prepared: &Prepared, script: &Script, stream: &mut TcpStream) -> io::Result<bool> {
    if let Some(delay) = script.delay {
        tokio::time::sleep(delay).await;
    }
    let (fault, at) = script.fault.unwrap_or((Fault::Error, At::Midway));
    let breaks = matches!(fault, Fault::Stall | Fault::Close | Fault::Reset | Fault::Endless);
    if breaks && at == At::Once {
        return break_off(fault, at, prepared, stream).await;
    }
    let mut out = BytesMut::new();
    head(prepared, script, &mut out);
    stream.write_all(&out).await?;
    let until = match (breaks, at) {
        (false, _) => prepared.pieces.len(),
        (true, At::Midway) => prepared.half,
        (true, _) => 0,
    };
    let together = script.interval.is_none() && !script.separate;
    out.clear();
    for piece in prepared.pieces.iter().take(until) {
        match script.split {
            Some(length) => piece.chunks(length).for_each(|chunk| put(prepared, chunk, &mut out)),
            None => put(prepared, piece, &mut out),
        }
        if together {
            continue;
        }
        stream.write_all(&out.split()).await?;
        match script.interval {
            Some(interval) => tokio::time::sleep(interval).await,
            None => tokio::task::yield_now().await,
        }
    }
    if script.split.is_some() && together {
        // A segment of its own for every few bytes, as far as the kernel lets us.
        for few in out.split().chunks(script.split.unwrap_or(1).max(16)) {
            stream.write_all(few).await?;
            tokio::task::yield_now().await;
        }
    }
    if breaks {
        stream.write_all(&out).await?;
        return break_off(fault, at, prepared, stream).await;
    }
    end(prepared, &mut out);
    stream.write_all(&out).await?;
    Ok(true)
}

async fn break_off(fault: Fault, at: At, prepared: &Prepared, stream: &mut TcpStream) -> io::Result<bool> {
    match fault {
        Fault::Stall => {
            // Until the caller has had enough.
            let mut nothing = [0; 1024];
            while stream.read(&mut nothing).await? > 0 {}
        }
        Fault::Reset => {
            // What was written has a moment to arrive: a reset overtakes it otherwise.
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.set_zero_linger()?;
        }
        Fault::Endless => {
            let content = prepared.half.checked_sub(1).and_then(|last| prepared.pieces.get(last));
            let content = content.filter(|_| at == At::Midway).cloned();
            let again = content.unwrap_or(Bytes::from_static(b": still here\n\n"));
            let mut out = BytesMut::new();
            put(prepared, &again, &mut out);
            loop {
                stream.write_all(&out).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        Fault::Close | Fault::Error | Fault::Garbage | Fault::Empty => stream.shutdown().await?,
    }
    Ok(false)
}

fn head(prepared: &Prepared, script: &Script, out: &mut BytesMut) {
    let length: usize = prepared.pieces.iter().map(Bytes::len).sum();
    let mut text = format!("HTTP/1.1 {} Script\r\nContent-Type: {}\r\n", prepared.status, prepared.content_type);
    match prepared.streamed {
        true => text += "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n",
        false => text += &format!("Content-Length: {length}\r\n"),
    }
    if let Some(seconds) = script.retry_after {
        text += &format!("Retry-After: {seconds}\r\n");
    }
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"X-Request-Id: req_script\r\n\r\n");
}

fn put(prepared: &Prepared, piece: &[u8], out: &mut BytesMut) {
    if !prepared.streamed {
        return out.extend_from_slice(piece);
    }
    if piece.is_empty() {
        return;
    }
    out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
    out.extend_from_slice(piece);
    out.extend_from_slice(b"\r\n");
}

fn end(prepared: &Prepared, out: &mut BytesMut) {
    if prepared.streamed {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

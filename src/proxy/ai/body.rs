//! Reading a call's body whole, within bounds of size, time and memory.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use pingora::proxy::Session;
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{Error, Reason};
use crate::proxy::context::Context;
use crate::proxy::{Proxy, body};
use crate::snapshot::ai::{Models, UNIT};

/// Between two pieces of a body. On HTTP/1.1 the listener's own limits hold too; HTTP/2 has no other.
pub const PIECE: Duration = Duration::from_secs(60);

/// Memory that is lent to one body until it is dropped.
pub type Held = OwnedSemaphorePermit;

/// Reads the body. The outer error means that the client is gone.
pub async fn read(
    proxy: &Proxy,
    session: &mut Session,
    ctx: &mut Context,
    models: &Models,
) -> pingora::Result<Result<(Bytes, Held), Error>> {
    let declared =
        session.req_header().headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let declared: u64 = declared.unwrap_or(0);
    if declared > models.max_body {
        return Ok(Err(Reason::BodyTooLarge.into()));
    }
    let Some(mut held) = lend(models, declared) else { return Ok(Err(overloaded())) };
    let mut whole = BytesMut::new();
    loop {
        let read = tokio::time::timeout(PIECE, session.downstream_session.read_request_body()).await;
        let Ok(read) = read else { return Ok(Err(Reason::RequestTimeout.into())) };
        let mut piece = read.map_err(|error| error.into_down())?;
        // Filters are told of the end with the last piece, as where a body is forwarded.
        let last = piece.is_none() || session.as_downstream_mut().is_body_done();
        if let Err(error) = body::request(proxy, &mut piece, last, ctx) {
            // What a filter found wrong is kept in the context.
            return ctx.failure.take().map(Err).ok_or(error);
        }
        let piece = piece.unwrap_or_default();
        if (whole.len() + piece.len()) as u64 > models.max_body {
            return Ok(Err(Reason::BodyTooLarge.into()));
        }
        let lent = held.num_permits() as u64 * UNIT;
        if (whole.len() + piece.len()) as u64 > lent {
            // Twice as much each time, so that a long body of unknown length does not ask for every piece.
            let Some(more) = lend(models, lent.max(64 << 10)) else { return Ok(Err(overloaded())) };
            held.merge(more);
        }
        // Most calls come in one piece, and need no copy of it.
        if last && whole.is_empty() {
            return Ok(Ok((piece, held)));
        }
        whole.extend_from_slice(&piece);
        if last {
            return Ok(Ok((whole.freeze(), held)));
        }
    }
}

fn lend(models: &Models, bytes: u64) -> Option<Held> {
    let permits = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
    Arc::clone(&models.memory).try_acquire_many_owned(permits).ok()
}

fn overloaded() -> Error {
    Error::with(Reason::OutOfMemory, "too many bodies of calls are held at this moment")
}

//! Bodies as they stream by: limits and transforms, chunk by chunk, in both directions.

use std::time::Duration;

use bytes::Bytes;

use super::context::Context;
use super::failure::fail;
use super::{Proxy, mirror};
use crate::error::{Error, Reason};
use crate::filters::filter::{BodyTransform, Pace};

/// One chunk from the client. A retry sends the kept beginning of the body through here again.
pub fn request(proxy: &Proxy, body: &mut Option<Bytes>, last: bool, ctx: &mut Context) -> pingora::Result<()> {
    let received = ctx.mirror.is_some().then(|| body.clone());
    ctx.received += body.as_ref().map_or(0, |chunk| chunk.len() as u64);
    if ctx.controls.body_limit.is_some_and(|limit| ctx.received > limit) {
        return Err(fail(ctx, Error::new(Reason::BodyTooLarge)));
    }
    if !ctx.controls.request_body.is_empty() {
        let mut transforms = std::mem::take(&mut ctx.controls.request_body);
        let changed = transform(&mut transforms, body, last);
        ctx.controls.request_body = transforms;
        changed.map_err(|error| fail(ctx, error))?;
    }
    // After the filters: a body that one of them refuses is not for the shadow either.
    if let Some(received) = received {
        mirror::body(proxy, &received, last, ctx);
    }
    if last {
        request_sent(ctx);
    }
    // An HTTP/2 client may end with an empty DATA frame. Passed on to an HTTP/1 upstream as an empty last chunk it would
    // end the chunked body twice, and the second end would poison the pooled connection (pingora #935).
    if last && body.as_ref().is_some_and(Bytes::is_empty) {
        *body = None;
    }
    Ok(())
}

/// One chunk for the client.
pub fn response(body: &mut Option<Bytes>, last: bool, ctx: &mut Context) -> pingora::Result<Option<Duration>> {
    if !ctx.controls.response_body.is_empty() {
        let mut transforms = std::mem::take(&mut ctx.controls.response_body);
        let changed = transform(&mut transforms, body, last);
        ctx.controls.response_body = transforms;
        changed.map_err(|error| fail(ctx, error))?;
    }
    if last && let Some(attempt) = &mut ctx.attempt {
        attempt.deadline = None;
    }
    // For an HTTP/2 upstream, whose connection cannot keep time for one of its streams.
    let total = ctx.limits.and_then(|limits| limits.total);
    if total.is_some_and(|total| ctx.exchange.started.elapsed() > total) {
        return Err(fail(ctx, Error::new(Reason::UpstreamTimeout)));
    }
    Ok(pause(&ctx.controls.response_pace, body))
}

/// How long a chunk waits before it goes on to the origin.
pub fn request_pause(body: &Option<Bytes>, ctx: &Context) -> Option<Duration> {
    pause(&ctx.controls.request_pace, body)
}

/// All paces account for the chunk; the slowest decides.
fn pause(paces: &[Box<dyn Pace>], body: &Option<Bytes>) -> Option<Duration> {
    let bytes = body.as_ref().map_or(0, Bytes::len);
    paces.iter().filter_map(|pace| pace.pace(bytes)).max()
}

/// The client has sent everything: from here on it is the origin that is waited for.
pub fn request_sent(ctx: &Context) {
    if let Some(deadline) = ctx.attempt.as_ref().and_then(|attempt| attempt.deadline.as_ref()) {
        deadline.request_sent();
    }
}

fn transform(
    transforms: &mut [Box<dyn BodyTransform>],
    body: &mut Option<Bytes>,
    last: bool,
) -> crate::error::Result<()> {
    let mut chunk = body.take().unwrap_or_default();
    for transform in transforms {
        chunk = transform.chunk(chunk, last)?;
    }
    // `None` before the end would be taken for the end; an empty chunk means "nothing yet".
    *body = Some(chunk);
    Ok(())
}

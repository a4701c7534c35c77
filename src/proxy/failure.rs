//! What Pingora's errors mean in our terms: whose fault, and which answer.

use pingora::ErrorType::HTTPStatus;
use pingora::{ErrorSource, ErrorType};

use super::context::Context;
use crate::error::{Error, Reason};
use crate::upstream::Failure;

/// The reason behind an error of Pingora's, as it is told to the client, the log and the metrics.
pub fn reason(error: &pingora::Error) -> Reason {
    use ErrorType::*;
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, ReadTimedout) => Reason::RequestTimeout,
        (ErrorSource::Downstream, ReadError | WriteError | WriteTimedout | ConnectionClosed | H2Error) => {
            Reason::ClientClosed
        }
        (ErrorSource::Downstream, _) => Reason::BadRequest,
        _ => Failure::of(error).map_or(Reason::Internal, Failure::reason),
    }
}

/// Ends a Pingora phase with one of our errors: it is kept in the context, where the last phase finds it, and what is
/// returned only carries the status.
pub fn fail(ctx: &mut Context, error: Error) -> Box<pingora::Error> {
    let carrier = carrier(error.reason);
    ctx.failure = Some(error);
    carrier
}

/// An error of Pingora's with the status of one of our reasons.
pub fn carrier(reason: Reason) -> Box<pingora::Error> {
    pingora::Error::explain(HTTPStatus(reason.status()), reason.label())
}

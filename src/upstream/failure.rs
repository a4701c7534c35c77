//! How an attempt at a target can fail, in the words of retries, ejection and answers.

use pingora::{ErrorSource, ErrorType};

use crate::config::upstream::RetryOn;
use crate::error::Reason;

/// Why an attempt brought no answer. A client that leaves is not a failure of the target and has no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Refused or unreachable.
    Connect,
    ConnectTimeout,
    Tls,
    /// The connection ended too early.
    Reset,
    /// The answer, or the next piece of it, did not come in time.
    Timeout,
    /// What came was not HTTP.
    InvalidAnswer,
}

impl Failure {
    /// Reads an error of Pingora; `None` if the target is not to blame for it.
    pub fn of(error: &pingora::Error) -> Option<Failure> {
        if error.esource == ErrorSource::Downstream {
            return None;
        }
        Some(match &error.etype {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Failure::ConnectTimeout,
            ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::ConnectProxyFailure
            | ErrorType::BindError
            | ErrorType::SocketError => Failure::Connect,
            ErrorType::TLSWantX509Lookup
            | ErrorType::TLSHandshakeFailure
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError => Failure::Tls,
            ErrorType::InvalidHTTPHeader | ErrorType::H1Error | ErrorType::H2Error | ErrorType::InvalidH2 => {
                Failure::InvalidAnswer
            }
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed | ErrorType::H2Downgrade => {
                Failure::Reset
            }
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Failure::Timeout,
            // Also errors that say nothing of their kind, when they came from the upstream's side.
            _ if error.esource == ErrorSource::Upstream => Failure::InvalidAnswer,
            _ => return None,
        })
    }

    /// How the gateway answers, when there is no further attempt.
    pub fn reason(self) -> Reason {
        match self {
            Failure::Connect => Reason::UpstreamRefused,
            Failure::ConnectTimeout => Reason::ConnectTimeout,
            Failure::Tls => Reason::UpstreamTls,
            Failure::Reset => Reason::UpstreamReset,
            Failure::Timeout => Reason::UpstreamTimeout,
            Failure::InvalidAnswer => Reason::UpstreamProtocol,
        }
    }

    pub(super) fn retry_on(self) -> RetryOn {
        match self {
            Failure::Connect | Failure::Tls => RetryOn::ConnectError,
            Failure::ConnectTimeout => RetryOn::ConnectTimeout,
            Failure::Reset => RetryOn::Reset,
            Failure::Timeout => RetryOn::Timeout,
            Failure::InvalidAnswer => RetryOn::InvalidAnswer,
        }
    }

    /// Whether the target cannot have seen the request.
    pub fn before_request(self) -> bool {
        matches!(self, Failure::Connect | Failure::ConnectTimeout | Failure::Tls)
    }
}

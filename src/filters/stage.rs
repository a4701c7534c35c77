//! The order in which filters see a request, with the reason each stage stands where it does.

/// A filter's place on the way of a request. Stages run in the order of declaration; inside one, filters run as written.
/// On the way back, answers pass the filters in the reverse order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// What needs no identity and costs least: addresses, size, CORS. A preflight carries no credentials, so CORS
    /// has to answer before authentication would refuse it.
    Guard,
    /// Who calls. Before anything that may depend on it.
    Authenticate,
    /// Whether that caller may. After identity, before anything that spends what the caller is allowed.
    Authorise,
    /// How much. Only calls that would be allowed may use up an allowance.
    Limit,
    /// Whether the call is well formed: parsing bodies is dear, so only callers within their limits get it.
    Validate,
    /// What is forwarded. Last, so that every decision above was made on the canonical request as it was matched.
    Transform,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Guard => "guard",
            Stage::Authenticate => "authenticate",
            Stage::Authorise => "authorise",
            Stage::Limit => "limit",
            Stage::Validate => "validate",
            Stage::Transform => "transform",
        }
    }
}

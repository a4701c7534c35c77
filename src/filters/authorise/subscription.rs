//! Lets subscribers of a service pass: what `access: subscribers` asks for.

use crate::config::consumer::SubscriptionState;
use crate::error::Reason;
use crate::filters::filter::{Flow, OnRequest, Request};
use crate::identity::ServiceId;

/// Refuses whoever has no approved subscription to the service.
pub struct Subscribed {
    pub service: ServiceId,
}

impl OnRequest for Subscribed {
    fn on_request(&self, request: &mut Request<'_>) -> Flow {
        let subscription = request.exchange.consumer().and_then(|consumer| consumer.subscription(self.service));
        let cause = match subscription.map(|subscription| subscription.state) {
            Some(SubscriptionState::Approved) => return Flow::Continue,
            Some(SubscriptionState::Requested) => "the subscription waits for approval",
            Some(SubscriptionState::Refused) => "the subscription was refused",
            Some(SubscriptionState::Revoked) => "the subscription was revoked",
            None if request.exchange.consumer().is_none() => "the caller is no consumer",
            None => "the consumer has no subscription",
        };
        request.exchange.cause = Some(cause);
        Flow::Refuse(Reason::NotSubscribed.into())
    }
}

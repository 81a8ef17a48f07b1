// SPDX-License-Identifier: Apache-2.0
//! Limits, shares, reservations and latency classes.

use model::{BitRate, LatencyClass, Limit, Part, Qos};

use super::fields::{Field, Fields};
use super::selectors::maybe;

const CLASSES: [(&str, LatencyClass); 2] =
    [("Standard", LatencyClass::Standard), ("Interactive", LatencyClass::Interactive)];

/// Reads a machine's part of the host's capacity.
pub(super) fn qos(field: &Field<'_>) -> Option<Qos> {
    let mut fields = field.fields()?;
    let limit = maybe(fields.optional("limit"), limit);
    let part = part(&mut fields);
    let class = maybe(fields.optional("class"), |class| class.one_of(&CLASSES));
    fields.finish();
    let (limit, Part { shares, reservation }) = (limit?, part?.unwrap_or_default());
    if let (Some(limit), Some(reserved)) = (limit, reservation)
        && reserved > limit.rate
    {
        return field.refuse("more is reserved than the limit lets through", "lower the reservation");
    }
    Some(Qos { limit, shares, reservation, class: class?.unwrap_or_default() })
}

/// Reads shares and a reservation; `Some(None)` if neither is given.
pub(super) fn part(fields: &mut Fields<'_>) -> Option<Option<Part>> {
    let shares = maybe(fields.optional("shares"), |shares| shares.integer(1..=Qos::SHARES_MAX));
    let reservation = maybe(fields.optional("reservation"), |reservation| {
        let mut fields = reservation.fields()?;
        let rate = rate(&mut fields);
        fields.finish();
        rate
    });
    let (shares, reservation) = (shares?, reservation?);
    let is_given = shares.is_some() || reservation.is_some();
    Some(is_given.then(|| Part { shares: shares.unwrap_or(Qos::SHARES_DEFAULT), reservation }))
}

/// Reads how much may pass.
pub(super) fn limit(field: &Field<'_>) -> Option<Limit> {
    let mut fields = field.fields()?;
    let rate = rate(&mut fields);
    let burst_bytes = maybe(fields.optional("burstBytes"), |burst| burst.integer(0..=Limit::BURST_BYTES_MAX));
    fields.finish();
    let usual = Limit::new(rate?);
    Some(Limit { burst_bytes: burst_bytes?.unwrap_or(usual.burst_bytes), ..usual })
}

fn rate(fields: &mut Fields<'_>) -> Option<BitRate> {
    let bits = fields.required("bitsPerSecond")?.integer(BitRate::BPS_MIN..=BitRate::BPS_MAX)?;
    BitRate::new(bits)
}

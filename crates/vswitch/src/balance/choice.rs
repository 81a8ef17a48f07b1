// SPDX-License-Identifier: Apache-2.0
//! Why an endpoint was chosen.

use std::fmt;

use model::Method;

/// Why an endpoint of a service was chosen for a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The weight of its share, and of all shares that had somebody to take flows; `None` where a service has none.
    pub share: Option<(u32, u32)>,
    /// Who was left to choose from.
    pub among: Among,
    /// How one of them was taken.
    pub method: Method,
    /// Whether by the client alone.
    pub affinity: bool,
    /// How many endpoints in their slow start were passed over.
    pub passed_over: u8,
    /// How many endpoints the flow was sent to before, in vain.
    pub retries: u8,
}

/// Which endpoints of a share a choice is made among.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Among {
    /// All that are in.
    #[default]
    In,
    /// Those of them that are local.
    Local,
    /// Those that are ejected or do not accept, because nobody is in.
    Unsound,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.method, self.affinity) {
            (Method::Maglev, false) => "maglev, hash of the flow",
            (Method::Maglev, true) => "maglev, affinity of the client",
            (Method::LeastOutstanding, false) => "least outstanding",
            (Method::LeastOutstanding, true) => "least outstanding, affinity of the client",
        })?;
        match self.among {
            Among::In => {}
            Among::Local => f.write_str(", local first")?,
            Among::Unsound => f.write_str(", all are ejected or full")?,
        }
        if let Some((weight, total)) = self.share {
            write!(f, ", share {weight} of {total}")?;
        }
        if self.passed_over > 0 {
            write!(f, ", {} passed over in slow start", self.passed_over)?;
        }
        if self.retries > 0 {
            write!(f, ", retry {}", self.retries)?;
        }
        Ok(())
    }
}

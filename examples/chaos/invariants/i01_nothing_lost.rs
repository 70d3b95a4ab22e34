//! I1: no row whose INSERT was acknowledged is lost. One whose answer was lost may be there or not; one that was refused
//! is not.

use super::Findings;
use crate::history::History;
use crate::recorder::{Answer, Intent};

pub fn check(history: &History, found: &mut Findings) {
    for operation in history.operations.iter().filter(|operation| operation.intent == Intent::Insert) {
        for row in &operation.rows {
            found.decide("I1");
            let there = history.table.contains_key(row);
            match &operation.answer {
                Answer::Done(_) if !there => {
                    found.violate("I1", format!("{row} was acknowledged and is not there"));
                }
                Answer::Refused(why) => {
                    found.violate("I1", format!("the INSERT of {row} was refused: {why}"));
                }
                Answer::Failed(why) if there => {
                    found.violate("I1", format!("the INSERT of {row} failed ({why}), and it is there"));
                }
                _ => {}
            }
        }
    }
}

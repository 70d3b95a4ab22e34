use crate::tables::{Check, between_marks, bytes};

#[test]
fn an_error_is_what_was_promised_too_much() {
    let check = |predicted, measured| {
        Check { what: String::new(), unit: String::new(), predicted, measured }.error_percent()
    };
    assert!((check(110.0, 100.0) - 10.0).abs() < 1e-9);
    assert!((check(80.0, 100.0) + 20.0).abs() < 1e-9);
}

#[test]
fn bytes_are_said_in_the_unit_that_fits() {
    assert_eq!(bytes(2.4e8), "240 MB");
    assert_eq!(bytes(1.26e9), "1.3 GB");
    assert_eq!(bytes(2.1e14), "210.0 TB");
}

#[test]
fn only_what_stands_between_the_marks_is_replaced() {
    let old = "a\n<!-- scaling: begin -->\nold\n<!-- scaling: end -->\nb\n";
    let new = between_marks(old, "new\n\n").unwrap_or_default();
    assert_eq!(new, "a\n<!-- scaling: begin -->\nnew\n<!-- scaling: end -->\nb\n");
    assert!(between_marks("no marks", "new").is_none());
}

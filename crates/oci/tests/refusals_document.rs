//! `docs/refusals.md` is made from the table of refusals; `BULKHEAD_UPDATE_DOCS=1` writes it.

use std::path::Path;

use bulkhead_oci::refuse::rules;

const HEAD: &str = "# What is refused

A container is never started as something less than what its configuration asks for. What a virtual
machine makes impossible, what the guest's kernels cannot do and what is not built yet is an error that names
the field, the reason and the alternative. This list is made from the table in `crates/oci/src/refuse`.

| field | | reason | instead |
|---|---|---|---|
";

#[test]
fn refusals_document_equals_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/refusals.md");
    let mut text = String::from(HEAD);
    for rule in rules() {
        let field = rule.field.replace('|', "\\|");
        text.push_str(&format!(
            "| `{field}` | {} | {} | {} |\n",
            rule.because, rule.reason, rule.alternative
        ));
    }

    if std::env::var_os("BULKHEAD_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }

    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/refusals.md is out of date: run with BULKHEAD_UPDATE_DOCS=1"
    );
}

# make demo    the whole path on a rendered 10-minute video, with small trained models
# make test    every test, optimised
# make check   what .ci/run runs besides
.PHONY: setup demo test check

setup:
	@./scripts/setup

demo: setup
	cargo run --release --locked --example demo

# One release build serves the tests, the examples and the demo.
test: setup
	cargo build --release --locked --examples
	cargo test --release --locked --test main
	cargo test --release --locked --doc

check: setup
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps

// Checks the kernels in emulation against f64 references. Arguments: none; `--list` for the kernels' launches; or the
// name of one group of tests, and the number of a bug to plant (in a build with PLANTED_BUGS).

#include <chrono>

#include "test.h"

#if defined(PLANTED_BUGS)
int planted_bug = 0;
#endif

namespace {

void list() {
    for (const auto& [name, kernel] : emulate::kernels()) {
        std::printf("| `%s` | %u | %zu |\n", name.c_str(), kernel.threads, kernel.shared);
    }
}

void run(const char* name, void (*tests)()) {
    const auto start = std::chrono::steady_clock::now();
    const int before = test::tally.checks;
    tests();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    std::printf("%s: %d checks, %.1f s\n", name, test::tally.checks - before, time.count());
    std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
    const std::string which = count > 1 ? arguments[1] : "";
    if (which == "--list") {
        list();
        return 0;
    }
#if defined(PLANTED_BUGS)
    if (count > 2) planted_bug = std::atoi(arguments[2]);
    test::tally.stop_at_failure = planted_bug != 0;
#endif
    const std::pair<const char*, void (*)()> groups[] = {
        {"emulator", test::emulator}, {"similarity", test::similarity}, {"reference", test::reference_gradients},
        {"decode", test::decode},     {"forward", test::forward},       {"backward", test::backward},
        {"layer", test::layer},
    };
    for (const auto& [name, tests] : groups) {
        if (which.empty() || which == name) run(name, tests);
    }
    for (const auto& [kind, worst] : test::tally.worst) std::printf("worst %s: %.3g\n", kind.c_str(), worst);
    std::printf("%d checks, %d failed\n", test::tally.checks, test::tally.failures);
    return test::tally.failures || !test::tally.checks ? 1 : 0;
}

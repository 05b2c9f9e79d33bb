/* Asks a libpq what it makes of connection strings: libpq LIBRARY options|passwords|parse|connect.
 * Strings come in and answers go out one after the other, each ended by a zero byte. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *keyword, *envvar, *compiled, *val, *label, *dispchar;
    int dispsize;
} Option;

static void *library;

static void *function(const char *name)
{
    void *found = dlsym(library, name);
    if (!found) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return found;
}

static void answer(const char *question, const char *text)
{
    char *message = NULL;
    if (!strcmp(question, "parse")) {
        Option *(*parse)(const char *, char **) = function("PQconninfoParse");
        Option *option = parse(text, &message);
        if (!option)
            printf("!%s", message);
        for (; option && option->keyword; option++)
            if (option->val)
                printf("%s=%s\n", option->keyword, option->val);
        return;
    }
    void *(*start)(const char *) = function(strcmp(question, "connect") ? "PQconnectStart" : "PQconnectdb");
    char *(*password)(void *) = function("PQpass"), *(*error)(void *) = function("PQerrorMessage");
    const char *(*attribute)(void *, const char *) = function("PQsslAttribute");
    int (*status)(void *) = function("PQstatus");
    void (*finish)(void *) = function("PQfinish");
    void *connection = start(text);
    if (!strcmp(question, "passwords"))
        printf("%s", password(connection));
    else if (status(connection) == 0)
        printf("%s", attribute(connection, "protocol") ? attribute(connection, "protocol") : "");
    else
        printf("!%s", error(connection));
    finish(connection);
}

int main(int count, char **words)
{
    char *text = NULL;
    size_t room = 0;
    if (count != 3 || !(library = dlopen(words[1], RTLD_NOW))) {
        fprintf(stderr, "%s\n", count == 3 ? dlerror() : "expected a library and a question");
        return 1;
    }
    if (!strcmp(words[2], "options")) {
        Option *(*defaults)(void) = function("PQconndefaults");
        for (Option *option = defaults(); option->keyword; option++)
            printf("%s %s%c", option->keyword, option->envvar ? option->envvar : "", 0);
    } else
        while (getdelim(&text, &room, 0, stdin) > 0) {
            answer(words[2], text);
            putchar(0);
        }
    return 0;
}

"""The browser as the tests of the page use it: conditions are awaited, the console and axe-core are asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

Value = TypeVar("Value")

PATIENCE = 30
AXE = Path(__file__).parent / "vendor" / "axe.min.js"


class Browser:
    """A browser on one page."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def reset(self) -> None:
        """Forget everything, as if started anew."""
        self.driver.get("about:blank")
        self.emulate()
        self.size(1280, 900)
        self.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        self.console()

    def open(self, address: str, shows: str = "numbers") -> None:
        """Go to an address, in a tab without a token, and await the panel of that id."""
        self.driver.get(address.partition("#")[0].partition("?")[0] + "icon.svg")
        self.driver.execute_script("sessionStorage.clear()")
        self.console()
        self.driver.get(address)
        self.await_panel(shows)

    def open_bare(self, address: str) -> None:
        """Go to a file beside the page, for its modules by themselves."""
        self.driver.get(f"{address}icon.svg")

    def await_panel(self, name: str) -> None:
        """Await a state: waiting, numbers, message or token-panel, with nothing under way."""
        self.wait(
            lambda: self.script(
                "const at = document.getElementById(arguments[0]);"
                "return at !== null && !at.hidden && !document.querySelector('main[aria-busy]')", name
            ),
            f"the page does not show {name}",
        )  # fmt: skip

    def wait(self, condition: Callable[[], Value], message: str = "") -> Value:
        """Await a condition and return its value."""
        waiting = WebDriverWait(
            self.driver, PATIENCE, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(lambda _: condition(), message)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.driver.execute_script(text, *arguments)

    def module(self, name: str, expression: str, *arguments: Any) -> Any:
        """Return what an expression of a module of the page, ``m``, gives; BigInt as text."""
        answer = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"import('/admin/usage/{name}.js').then((m) => done({{value: {expression}}})).catch((e) => done({{error: String(e)}}))",
            *arguments,
        )
        assert "error" not in answer, answer
        return answer["value"]

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0]).textContent", selector))

    def table(self, selector: str) -> list[list[tuple[str, str | None]]]:
        """Return a table's body: (text, title attribute) of each cell, as written, whether or not it is seen."""
        found = self.script(
            "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((row) =>"
            " [...row.children].map((cell) => [cell.textContent, cell.getAttribute('title')]))", selector
        )  # fmt: skip
        return [[(text, title) for text, title in row] for row in found]

    def query(self) -> str:
        return str(self.script("return location.search"))

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone},
        )

    def emulate(self, media: str = "", **features: str) -> None:
        """Emulate a medium and its features: ``prefers_color_scheme="dark"``."""
        given = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": given})

    def console(self) -> list[str]:
        """Return what was written to the console since the last call."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def violations(self) -> list[str]:
        """Return what axe-core finds, each with the elements it is about."""
        self.script(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1]; axe.run().then((r) => done(r.violations))"
        )
        return [f"{one['id']}: {[node['html'][:200] for node in one['nodes']][:3]}" for one in found]
